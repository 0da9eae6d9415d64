PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE launch (
    key TEXT PRIMARY KEY,
    pool TEXT NOT NULL REFERENCES pool (name),
    sequence INTEGER NOT NULL,
    requested REAL NOT NULL,      -- the intent was written
    outcome TEXT,                 -- launched, refused, undone; NULL: not known yet
    settled REAL,                 -- the outcome was written
    job_id TEXT,
    error TEXT,
    ended REAL,
    exit_code INTEGER,
    why TEXT,
    cause TEXT,                   -- backends.base.EndCause
    error_kind TEXT,              -- the class of the error, of backends.base
    started REAL,                 -- its job runs
    registered REAL,              -- the server knows the worker
    first_bundle REAL,
    draining REAL,                -- told to take no more
    given_up REAL,                -- ended by us, for it never registered
    last_words TEXT               -- the end of its output, of one that was given up
);
INSERT INTO "launch" VALUES('local-process-1-4655a9c5','local-process',1,1.79529387413250303266e+09,'launched',1.79529387416558742522e+09,'local-process-1-4655a9c5',NULL,1.79529387669916629796e+09,0,'','finished',NULL,1.79529387415373516082e+09,1.79529387648493981362e+09,NULL,NULL,NULL,NULL);
CREATE TABLE pool (
    name TEXT PRIMARY KEY,
    backend TEXT NOT NULL,
    server TEXT NOT NULL,
    settings TEXT NOT NULL,       -- JSON: the options of pool and backend, no secrets
    sequence INTEGER NOT NULL DEFAULT 0,
    last_launch REAL,
    changed REAL,                 -- since when its workers are launched as they are now
    proven REAL                   -- when one of these last came to the server
);
INSERT INTO "pool" VALUES('local-process','local-process','http://127.0.0.1:44815','{"min_workers": 0, "max_workers": 1, "worker_idle_seconds": 1, "sleep_time": 1.0, "cpus": 1, "gpus": 0, "memory_mb": 2048, "server": null, "search": [], "restart_after_seconds": null, "terminate_on_exit": false, "pool": null, "no_prefilter": false, "min_seconds_between_workers": 0.0, "max_launches_per_minute": null, "drain_grace_seconds": 3600.0, "registration_seconds": 600.0, "price_per_hour": null, "budget_per_hour": null, "budget_per_day": null, "budget_per_month": null, "patience_seconds": null, "worker_executable": null, "worker_tag": null, "worker_tag_exclusive": false, "worker_group": null, "worker_exit_after_num_runs": null, "worker_work_dir_prefix": null, "worker_max_work_dir_size": null, "worker_delete_work_dir_on_exit": false, "worker_download_dependencies_max_retries": 3, "worker_checkin_frequency_seconds": null, "worker_shared_memory_size_gb": null, "worker_pass_down_termination": false, "worker_exit_on_exception": false, "worker_preemptible": false}',1,1.79529387413250303266e+09,1.79529387396169400211e+09,1.79529387669916629796e+09);
CREATE INDEX launch_open ON launch (pool) WHERE outcome IS NULL;
CREATE INDEX launch_running ON launch (pool, sequence)
    WHERE outcome = 'launched' AND ended IS NULL;
CREATE INDEX launch_by_end ON launch (pool, ended);
CREATE INDEX launch_by_sequence ON launch (pool, sequence);
COMMIT;
