PRAGMA user_version = 0;
BEGIN TRANSACTION;
CREATE TABLE bundle (
	id BIGINT NOT NULL, 
	uuid TEXT NOT NULL, 
	owner_id TEXT NOT NULL, 
	bundle_type TEXT NOT NULL, 
	command TEXT NOT NULL, 
	args TEXT NOT NULL, 
	name TEXT NOT NULL, 
	state TEXT NOT NULL, 
	created FLOAT NOT NULL, 
	metadata TEXT NOT NULL, 
	fingerprint TEXT NOT NULL, 
	cpus INTEGER NOT NULL, 
	gpus INTEGER NOT NULL, 
	memory_bytes BIGINT NOT NULL, 
	disk_bytes BIGINT NOT NULL, 
	time_seconds FLOAT NOT NULL, 
	queue TEXT NOT NULL, 
	claim INTEGER NOT NULL, 
	worker_id TEXT, 
	session TEXT, 
	kill_message TEXT, 
	staged_status TEXT, 
	location TEXT, 
	is_directory BOOLEAN, 
	size_bytes BIGINT, 
	PRIMARY KEY (id), 
	UNIQUE (uuid)
);
INSERT INTO "bundle" VALUES(1,'0x77abd3b0acb34e76b04e1d7a693614ae','0','dataset','','upload','greeting','ready',1.79529387083987784388e+09,'{"description":"","tags":[],"license":"","source_url":"","name":"greeting","created":1795293870,"actions":[],"data_size":6}','ca9512155acec25ac10ae7831f694939e0332e4f59594dc539a35cef34f86a12',1,0,2147483648,0,0.0,'',0,NULL,NULL,NULL,NULL,'77/0x77abd3b0acb34e76b04e1d7a693614ae-ad3340a0271aaa06-5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03',0,6);
INSERT INTO "bundle" VALUES(2,'0xe54c7f1234d54ef69b57659721931f44','0','run','echo done','run "echo done"','done','ready',1.79529387217518663407e+09,'{"description":"","tags":[],"allow_failed_dependencies":false,"request_docker_image":"","request_time":"","request_memory":"2g","request_disk":"","request_cpus":1,"request_gpus":0,"request_queue":"","request_priority":0,"request_network":true,"exclude_patterns":[],"store":"","name":"done","created":1795293872,"actions":[],"started":1795293875,"last_updated":1795293875,"remote":"host","remote_history":["local-process-1-4655a9c5"],"on_preemptible_worker":false,"run_status":"Finalizing","time":0.02752208709716797,"time_user":0.001322,"time_system":0.009498,"exitcode":0,"cpu_usage":0.0,"memory_usage":0.0,"memory":0,"memory_max":0,"data_size":5,"time_preparing":0.0029451847076416016,"time_running":0.02754044532775879,"time_cleaning_up":0.007461071014404297,"time_uploading_results":0.016783952713012695}','a9dc3b7008d820b7f5fb2cba8d04ed669cca20a06688d594fd0784d49c877f31',1,0,2147483648,0,0.0,'',1,'local-process-1-4655a9c5','630c9a2b1bdf4adea766571a7a4278b5',NULL,NULL,'e5/0xe54c7f1234d54ef69b57659721931f44-c5778041562340bc',1,5);
INSERT INTO "bundle" VALUES(3,'0x2979c6fc146c4099b6972daf16eaa6ee','0','run','cat greeting','run greeting:0x77abd3b0acb34e76b04e1d7a693614ae "cat greeting"','waiting','staged',1.79529388175474524493e+09,'{"description":"","tags":[],"allow_failed_dependencies":false,"request_docker_image":"","request_time":"","request_memory":"2g","request_disk":"","request_cpus":1,"request_gpus":0,"request_queue":"","request_priority":0,"request_network":true,"exclude_patterns":[],"store":"","name":"waiting","created":1795293881,"actions":[]}','a3f34298664256f70cc65c876b250fce9e45dc65537501103482f6c3b08f70b4',1,0,2147483648,0,0.0,'',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE bundle_user (
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	password TEXT, 
	is_root BOOLEAN NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "bundle_user" VALUES('0','admin',NULL,1,1.79529386964009094232e+09);
CREATE TABLE dependency (
	child_id BIGINT NOT NULL, 
	position INTEGER NOT NULL, 
	child_path TEXT NOT NULL, 
	parent_uuid TEXT NOT NULL, 
	parent_path TEXT NOT NULL, 
	parent_name TEXT NOT NULL, 
	PRIMARY KEY (child_id, position)
);
INSERT INTO "dependency" VALUES(3,0,'greeting','0x77abd3b0acb34e76b04e1d7a693614ae','','greeting');
CREATE TABLE group_member (
	group_id TEXT NOT NULL, 
	user_id TEXT NOT NULL, 
	PRIMARY KEY (group_id, user_id), 
	FOREIGN KEY(group_id) REFERENCES user_group (id), 
	FOREIGN KEY(user_id) REFERENCES bundle_user (id)
);
CREATE TABLE lease (
	user_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	fence BIGINT NOT NULL, 
	holder TEXT, 
	ttl_seconds FLOAT NOT NULL, 
	PRIMARY KEY (user_id, name), 
	FOREIGN KEY(user_id) REFERENCES bundle_user (id)
);
INSERT INTO "lease" VALUES('0','local-process',1,NULL,15.0);
CREATE TABLE schema_version (
	version INTEGER NOT NULL
);
INSERT INTO "schema_version" VALUES(2);
CREATE TABLE token (
	digest TEXT NOT NULL, 
	user_id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	expires FLOAT, 
	PRIMARY KEY (digest), 
	FOREIGN KEY(user_id) REFERENCES bundle_user (id)
);
INSERT INTO "token" VALUES('d93ed7aed08118c2c326477605e381fa0b98639807ca6c8a5cbd1d9e42a36dde','0','home',NULL);
INSERT INTO "token" VALUES('7bb8cea90721acc5d81b70951249268db5d908269a7e07d5e1a370f3dbcb4c3c','0','worker',1.79538027411506319048e+09);
CREATE TABLE transition (
	id BIGINT NOT NULL, 
	uuid TEXT NOT NULL, 
	owner_id TEXT NOT NULL, 
	from_state TEXT, 
	to_state TEXT NOT NULL, 
	time FLOAT NOT NULL, 
	claim INTEGER NOT NULL, 
	worker_id TEXT, 
	reason TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "transition" VALUES(1795293869681851,'0x77abd3b0acb34e76b04e1d7a693614ae','0',NULL,'uploading',1.79529387083987784388e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795293869681852,'0x77abd3b0acb34e76b04e1d7a693614ae','0','uploading','ready',1.79529387093626594546e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795293869681853,'0xe54c7f1234d54ef69b57659721931f44','0',NULL,'created',1.79529387217518663407e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795293869681854,'0xe54c7f1234d54ef69b57659721931f44','0','created','staged',1.79529387217518663407e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795293869681855,'0xe54c7f1234d54ef69b57659721931f44','0','staged','starting',1.79529387557012510296e+09,1,'local-process-1-4655a9c5','');
INSERT INTO "transition" VALUES(1795293869681856,'0xe54c7f1234d54ef69b57659721931f44','0','starting','running',1.79529387562715792656e+09,1,'local-process-1-4655a9c5','');
INSERT INTO "transition" VALUES(1795293869681857,'0xe54c7f1234d54ef69b57659721931f44','0','running','ready',1.79529387565319466591e+09,1,'local-process-1-4655a9c5','');
INSERT INTO "transition" VALUES(1795293869681858,'0x2979c6fc146c4099b6972daf16eaa6ee','0',NULL,'created',1.79529388175474524493e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795293869681859,'0x2979c6fc146c4099b6972daf16eaa6ee','0','created','staged',1.79529388175474524493e+09,0,NULL,'');
CREATE TABLE user_group (
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	owner_id TEXT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name), 
	FOREIGN KEY(owner_id) REFERENCES bundle_user (id)
);
CREATE TABLE worker (
	id TEXT NOT NULL, 
	user_id TEXT NOT NULL, 
	token_digest TEXT, 
	is_live BOOLEAN NOT NULL, 
	session TEXT, 
	former_sessions TEXT NOT NULL, 
	facts TEXT NOT NULL, 
	seen FLOAT NOT NULL, 
	drain_reason TEXT, 
	PRIMARY KEY (id)
);
CREATE INDEX bundle_by_state ON bundle (state);
CREATE INDEX bundle_by_owner ON bundle (owner_id, state);
CREATE INDEX bundle_by_name ON bundle (name);
CREATE INDEX ix_dependency_parent_uuid ON dependency (parent_uuid);
CREATE INDEX ix_transition_uuid ON transition (uuid);
COMMIT;
