SET LOCAL lock_timeout = '5s';

-- Retention takes the longest finished of each status: one probe, however many are kept.
CREATE INDEX tasks_finished ON scheduler.tasks (status, finished_at) WHERE finished_at IS NOT NULL;

-- What retention frees is to be found by those who write, long before a fifth of the table is gone.
ALTER TABLE scheduler.run_logs SET (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    toast.autovacuum_vacuum_scale_factor = 0.02
);
