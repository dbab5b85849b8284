SET LOCAL lock_timeout = '5s';

CREATE TABLE scheduler.tasks (
    id                 uuid PRIMARY KEY,
    user_id            uuid NOT NULL,
    status             text NOT NULL DEFAULT 'pending'
                       CONSTRAINT tasks_status CHECK (status IN (
                           'pending', 'queued', 'running', 'completed', 'failed', 'cancelled')),
    reason             text
                       CONSTRAINT tasks_reason CHECK (reason IN (
                           'exit_nonzero', 'timeout', 'oom_killed', 'image_not_found', 'image_pull_failed',
                           'invalid_command', 'engine_error', 'executor_lost', 'queue_ttl_expired')),
    priority           smallint NOT NULL DEFAULT 5
                       CONSTRAINT tasks_priority CHECK (priority BETWEEN 0 AND 9),
    name               text,
    labels             jsonb NOT NULL DEFAULT '{}',
    image              text NOT NULL,
    command            text,
    args               text[] NOT NULL DEFAULT '{}',
    entrypoint         text[],
    environment        jsonb NOT NULL DEFAULT '{}',
    timeout_seconds    integer NOT NULL,
    stop_grace_seconds integer NOT NULL,
    cpus               double precision NOT NULL,
    memory_mb          integer NOT NULL,
    pids               integer NOT NULL,
    network            text NOT NULL
                       CONSTRAINT tasks_network CHECK (network IN ('egress', 'none')),
    -- What the user asked for; due_at is when it may start, and moves when a lost run is made up for.
    scheduled_at       timestamptz NOT NULL,
    due_at             timestamptz NOT NULL,
    -- Runs that count; the lost ones are counted apart. Their sum is the number of the last run.
    attempts           integer NOT NULL DEFAULT 0,
    lost_count         integer NOT NULL DEFAULT 0,
    result             bytea,
    error_msg          text,
    exit_code          integer,
    created_at         timestamptz NOT NULL DEFAULT now(),
    queued_at          timestamptz,
    started_at         timestamptz,
    finished_at        timestamptz,
    updated_at         timestamptz NOT NULL DEFAULT now(),
    deleted_at         timestamptz,
    request_id         text NOT NULL,
    CONSTRAINT tasks_finished CHECK ((finished_at IS NOT NULL) = (status IN ('completed', 'failed', 'cancelled'))),
    CONSTRAINT tasks_reason_of_failure CHECK ((reason IS NOT NULL) = (status = 'failed'))
) WITH (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

-- Dispatch looks at the earliest due row of each priority: one probe a priority, however many tasks wait.
CREATE INDEX tasks_pending ON scheduler.tasks (priority, due_at) WHERE status = 'pending';
-- Lists take the newest rows of each status and merge them, so two indexes serve every filter.
CREATE INDEX tasks_by_user ON scheduler.tasks (user_id, status, created_at DESC, id DESC);
CREATE INDEX tasks_by_status ON scheduler.tasks (status, created_at DESC, id DESC);
CREATE INDEX tasks_deleted ON scheduler.tasks (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE scheduler.runs (
    id                uuid PRIMARY KEY,
    task_id           uuid NOT NULL REFERENCES scheduler.tasks ON DELETE CASCADE,
    number            integer NOT NULL,
    status            text NOT NULL DEFAULT 'queued'
                      CONSTRAINT runs_status CHECK (status IN (
                          'queued', 'claimed', 'running', 'stopping', 'completed', 'failed', 'cancelled', 'lost')),
    reason            text
                      CONSTRAINT runs_reason CHECK (reason IN (
                          'exit_nonzero', 'timeout', 'oom_killed', 'image_not_found', 'image_pull_failed',
                          'invalid_command', 'engine_error', 'executor_lost', 'queue_ttl_expired')),
    -- Counts the executors that held it: a report with an older epoch comes from one that lost it.
    epoch             integer NOT NULL DEFAULT 0,
    executor_id       text,
    boot_id           text,
    engine_id         text,
    image_digest      text,
    container_id      text,
    exit_code         integer,
    error_msg         text,
    max_memory_mb     integer,
    queued_at         timestamptz NOT NULL DEFAULT now(),
    published_at      timestamptz,
    publish_count     integer NOT NULL DEFAULT 0,
    next_publish_at   timestamptz NOT NULL,
    claimed_at        timestamptz,
    started_at        timestamptz,
    finished_at       timestamptz,
    stop_requested_at timestamptz,
    stop_reason       text CONSTRAINT runs_stop_reason CHECK (stop_reason IN ('cancelled')),
    request_id        text NOT NULL,
    CONSTRAINT runs_number UNIQUE (task_id, number),
    CONSTRAINT runs_finished CHECK (
        (finished_at IS NOT NULL) = (status IN ('completed', 'failed', 'cancelled', 'lost'))),
    CONSTRAINT runs_claimed CHECK (status NOT IN ('claimed', 'running', 'stopping') OR (
        executor_id IS NOT NULL AND boot_id IS NOT NULL AND engine_id IS NOT NULL
        AND claimed_at IS NOT NULL AND epoch > 0)),
    CONSTRAINT runs_stopping CHECK (status <> 'stopping' OR stop_requested_at IS NOT NULL)
) WITH (
    fillfactor = 85,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

-- S1: at most one live run per task.
CREATE UNIQUE INDEX runs_one_live ON scheduler.runs (task_id)
    WHERE status IN ('queued', 'claimed', 'running', 'stopping');
CREATE INDEX runs_to_publish ON scheduler.runs (next_publish_at) WHERE status = 'queued';

-- A row exists exactly while its run is claimed, running or stopping. Renewals touch no index: they stay HOT.
CREATE TABLE scheduler.leases (
    run_id      uuid PRIMARY KEY REFERENCES scheduler.runs ON DELETE CASCADE,
    executor_id text NOT NULL,
    boot_id     text NOT NULL,
    engine_id   text NOT NULL,
    epoch       integer NOT NULL,
    adopted     boolean NOT NULL DEFAULT false,
    expires_at  timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE scheduler.executors (
    id             text PRIMARY KEY,
    boot_id        text NOT NULL,
    -- Boots that a later one took the place of. They may not come back.
    replaced_boots text[] NOT NULL DEFAULT '{}',
    engine_id      text NOT NULL,
    host           text NOT NULL,
    slots          integer NOT NULL,
    running        integer NOT NULL,
    claims_total   bigint NOT NULL DEFAULT 0,
    state          text NOT NULL DEFAULT 'active'
                   CONSTRAINT executors_state CHECK (state IN ('active', 'draining')),
    started_at     timestamptz NOT NULL DEFAULT now(),
    last_seen_at   timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The scheduler's own parts (http, dispatch, sweep): since when each has been at work without a gap.
CREATE TABLE scheduler.parts (
    name    text PRIMARY KEY,
    since   timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE scheduler.run_logs (
    run_id uuid NOT NULL REFERENCES scheduler.runs ON DELETE CASCADE,
    seq    bigint NOT NULL,
    stream smallint NOT NULL CONSTRAINT run_logs_stream CHECK (stream IN (1, 2)),
    at     timestamptz NOT NULL,
    data   bytea NOT NULL,
    PRIMARY KEY (run_id, seq)
);

CREATE FUNCTION scheduler.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% % is % and never changes', TG_TABLE_NAME, OLD.id, OLD.status
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER tasks_terminal BEFORE UPDATE ON scheduler.tasks FOR EACH ROW
    WHEN (OLD.status IN ('completed', 'failed', 'cancelled'))
    EXECUTE FUNCTION scheduler.refuse_change();
CREATE TRIGGER runs_terminal BEFORE UPDATE ON scheduler.runs FOR EACH ROW
    WHEN (OLD.status IN ('completed', 'failed', 'cancelled', 'lost'))
    EXECUTE FUNCTION scheduler.refuse_change();
