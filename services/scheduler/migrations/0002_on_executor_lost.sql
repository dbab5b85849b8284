SET LOCAL lock_timeout = '5s';

-- What becomes of a run whose engine is silent for too long: retry gives it up, hold waits for the engine.
-- The default is a constant, so no row is written.
ALTER TABLE scheduler.tasks ADD COLUMN on_executor_lost text NOT NULL DEFAULT 'retry'
    CONSTRAINT tasks_on_executor_lost CHECK (on_executor_lost IN ('retry', 'hold'));
