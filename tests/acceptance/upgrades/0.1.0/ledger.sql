PRAGMA user_version = 2;
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
    cause TEXT                    -- backends.base.EndCause
);
INSERT INTO "launch" VALUES('local-process-1-265ca902','local-process',1,1.79528212724487876887e+09,'launched',1.79528212725346302987e+09,'local-process-1-265ca902',NULL,1.79528212982668375968e+09,0,'','finished');
CREATE TABLE pool (
    name TEXT PRIMARY KEY,
    backend TEXT NOT NULL,
    server TEXT NOT NULL,
    settings TEXT NOT NULL,       -- JSON: the options of pool and backend, no secrets
    sequence INTEGER NOT NULL DEFAULT 0,
    last_launch REAL
);
INSERT INTO "pool" VALUES('local-process','local-process','http://127.0.0.1:39165','{"min_workers": 0, "max_workers": 1, "cpus": 1, "gpus": 0, "memory_mb": 2048, "server": null, "pool": null, "search": [], "no_prefilter": false, "sleep_time": 5.0, "min_seconds_between_workers": 0.0, "restart_after_seconds": null, "terminate_on_exit": false, "worker_executable": null, "worker_tag": null, "worker_tag_exclusive": false, "worker_group": null, "worker_idle_seconds": 600, "worker_exit_after_num_runs": null, "worker_work_dir_prefix": null, "worker_max_work_dir_size": null, "worker_delete_work_dir_on_exit": false, "worker_download_dependencies_max_retries": 3, "worker_checkin_frequency_seconds": null, "worker_shared_memory_size_gb": null, "worker_pass_down_termination": false, "worker_exit_on_exception": false, "worker_preemptible": false}',1,1.79528212724487876887e+09);
CREATE INDEX launch_open ON launch (pool) WHERE outcome IS NULL;
CREATE INDEX launch_by_sequence ON launch (pool, sequence);
COMMIT;
