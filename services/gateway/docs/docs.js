// Shows the API's OpenAPI document: each operation with its parameters, body and answers.

const METHODS = ["get", "post", "put", "patch", "delete"];

/** An element with attributes and children; text is always set as text, never as markup. */
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function resolve(api, node) {
  for (let depth = 0; node && node.$ref && depth < 10; depth += 1) {
    node = node.$ref.slice(2).split("/").reduce((found, key) => found?.[key.replace(/~1/g, "/")], api);
  }
  return node ?? {};
}

/** A schema's type in a few words: `string (uuid)`, `list of string`, `"a" | "b"`. */
function describeType(api, schema) {
  const name = schema?.$ref?.split("/").pop();
  const found = resolve(api, schema);
  if (found.enum) return found.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (name && found.type === "object") return name;
  if (found.type === "array") return `list of ${describeType(api, found.items ?? {})}`;
  if (found.type === "object" && found.additionalProperties?.type) return `map of ${found.additionalProperties.type}`;
  const alternatives = found.oneOf ?? found.anyOf ?? found.allOf;
  if (alternatives) return describeAlternatives(api, alternatives);
  const type = found.format ? `${found.type} (${found.format})` : (found.type ?? name ?? "any");
  return found.nullable ? `${type} | null` : type;
}

/** An object that may be null is written as the object's schema beside one that allows nothing but null. */
function describeAlternatives(api, parts) {
  const isNull = (part) => part.nullable && !part.$ref && !part.properties;
  const named = parts.filter((part) => !isNull(part)).map((part) => describeType(api, part));
  return [...named, ...(parts.some(isNull) ? ["null"] : [])].join(" | ");
}

function describeLimits(found) {
  const limits = [];
  const add = (key, text) => key in found && limits.push(text(found[key]));
  add("minimum", (value) => `≥ ${value}`);
  add("maximum", (value) => `≤ ${value}`);
  add("minLength", (value) => `at least ${value} characters`);
  add("maxLength", (value) => `at most ${value} characters`);
  add("maxItems", (value) => `at most ${value} of them`);
  add("pattern", (value) => `like ${value}`);
  add("default", (value) => `default ${JSON.stringify(value)}`);
  return limits.join(", ");
}

function row(api, name, schema, { required, place, description }) {
  const found = resolve(api, schema);
  return el("tr", {},
    el("td", {}, el("code", {}, name), required ? el("span", { class: "required", title: "required" }, " *") : null),
    el("td", {}, place ?? ""),
    el("td", {}, describeType(api, schema)),
    el("td", {}, [(description ?? found.description)?.replace(/\.$/, ""), describeLimits(found)].filter(Boolean).join("; ")));
}

function table(...rows) {
  const heads = ["Name", "Where", "Type", ""].map((text) => el("th", {}, text));
  return el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
}

function schemaRows(api, schema, place) {
  const found = resolve(api, schema);
  const required = new Set(found.required ?? []);
  return Object.entries(found.properties ?? {}).map(([name, property]) =>
    row(api, name, property, { place, required: required.has(name) }));
}

function showRequest(api, item, operation) {
  const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])].map((one) => resolve(api, one));
  const content = resolve(api, operation.requestBody).content ?? {};
  const rows = [
    ...parameters.map((one) => row(api, one.name, one.schema ?? {}, { ...one, place: one.in })),
    ...Object.values(content).slice(0, 1).flatMap((one) => schemaRows(api, one.schema, "body")),
  ];
  return rows.length ? [el("h4", {}, "Request"), table(...rows)] : [];
}

function showAnswers(api, operation) {
  const rows = Object.entries(operation.responses ?? {}).map(([status, response]) => {
    const found = resolve(api, response);
    const schema = Object.values(found.content ?? {})[0]?.schema;
    const fields = schema ? schemaRows(api, schema, "") : [];
    const shown = fields.length ? [el("details", {}, el("summary", {}, describeName(schema)), table(...fields))] : [];
    return el("tr", {}, el("td", {}, el("code", {}, status)), el("td", {}, found.description ?? "", ...shown));
  });
  return [el("h4", {}, "Answers"), el("table", {}, el("tbody", {}, ...rows))];
}

function describeName(schema) {
  return schema.$ref ? schema.$ref.split("/").pop() : "fields";
}

function isOpen(api, operation) {
  const security = operation.security ?? api.security ?? [];
  return security.length === 0 || security.some((one) => Object.keys(one).length === 0);
}

function showOperation(api, path, method, item) {
  const operation = item[method];
  const verb = method.toUpperCase();
  const details = el("details", { class: "operation", "data-text": `${verb} ${path} ${operation.summary ?? ""}`.toLowerCase() },
    el("summary", {},
      el("span", { class: `method ${verb}` }, verb),
      el("span", { class: "path" }, path),
      el("span", { class: "what" }, operation.summary ?? "")),
    el("div", { class: "body" },
      el("p", {}, operation.description ?? ""),
      el("p", {}, isOpen(api, operation) ? "Anyone may call this." : "Needs Authorization: Bearer TOKEN."),
      ...showRequest(api, item, operation),
      ...showAnswers(api, operation)));
  return [operation.tags?.[0] ?? path.split("/")[2] ?? "", details];
}

function show(api) {
  const groups = new Map();
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((one) => item[one])) {
      const [group, details] = showOperation(api, path, method, item);
      groups.set(group, [...(groups.get(group) ?? []), details]);
    }
  }
  document.querySelector("#description").textContent = api.info.description ?? "";
  document.querySelector("#operations").replaceChildren(
    ...[...groups].map(([group, operations]) => el("section", {}, el("h2", {}, group), ...operations)));
}

function filter(event) {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const operation of document.querySelectorAll(".operation")) {
    operation.hidden = !words.every((word) => operation.dataset.text.includes(word));
  }
  for (const section of document.querySelectorAll("section")) {
    section.hidden = !section.querySelector(".operation:not([hidden])");
  }
}

try {
  const response = await fetch("/api/openapi.json");
  if (!response.ok) throw new Error(`${response.status}: ${(await response.json()).detail}`);
  show(await response.json());
  document.querySelector("#filter").addEventListener("input", filter);
} catch (error) {
  document.querySelector("#operations").textContent = `The document could not be loaded. ${error.message}`;
}
