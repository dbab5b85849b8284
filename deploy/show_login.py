"""Prints where the system is, who may sign in, and what to try next."""

from __future__ import annotations

from deploy.environment import ENV_FILE, gateway_url, read_settings

TEXT = """
Task Runner is up:  {url}
  documentation     {url}/api/docs
  admin             {email}
  password          {password}      (kept in deploy/.env)

Next: make demo
"""


def main() -> None:
    settings = read_settings(ENV_FILE.read_text())
    print(
        TEXT.format(url=gateway_url(settings), email=settings["ADMIN_EMAIL"], password=settings["ADMIN_PASSWORD"])
    )


if __name__ == "__main__":
    main()
