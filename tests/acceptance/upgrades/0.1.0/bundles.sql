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
INSERT INTO "bundle" VALUES(1,'0x12c39d6f58ca486b81964e9aa3e7d635','0','dataset','','upload','greeting','ready',1.79528212647139883036e+09,'{"description":"","tags":[],"license":"","source_url":"","name":"greeting","created":1795282126,"actions":[],"data_size":6}','ca9512155acec25ac10ae7831f694939e0332e4f59594dc539a35cef34f86a12',1,0,2147483648,0,0.0,'',0,NULL,NULL,NULL,NULL,'12/0x12c39d6f58ca486b81964e9aa3e7d635-27796ae02ee4a165-5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03',0,6);
INSERT INTO "bundle" VALUES(2,'0x3ed7d885965b452188ddca072fe3d7ac','0','run','echo done','run "echo done"','done','ready',1.79528212678300523761e+09,'{"description":"","tags":[],"allow_failed_dependencies":false,"request_docker_image":"","request_time":"","request_memory":"2g","request_disk":"","request_cpus":1,"request_gpus":0,"request_queue":"","request_priority":0,"request_network":true,"exclude_patterns":[],"store":"","name":"done","created":1795282126,"actions":[],"started":1795282127,"last_updated":1795282127,"remote":"host","remote_history":["local-process-1-265ca902"],"on_preemptible_worker":false,"run_status":"Finalizing","time":0.022265195846557617,"time_user":0.00454,"time_system":0.005723,"exitcode":0,"cpu_usage":0.0,"memory_usage":0.0,"memory":0,"memory_max":0,"data_size":5,"time_preparing":0.004262685775756836,"time_running":0.022282838821411133,"time_cleaning_up":0.00927281379699707,"time_uploading_results":0.014056921005249023}','a9dc3b7008d820b7f5fb2cba8d04ed669cca20a06688d594fd0784d49c877f31',1,0,2147483648,0,0.0,'',1,'local-process-1-265ca902','7b5015f845234510945c4fd51eee30d2',NULL,NULL,'3e/0x3ed7d885965b452188ddca072fe3d7ac-a50f24bba48b3d83',1,5);
INSERT INTO "bundle" VALUES(3,'0xdc106709360b454ea45eb49bf4163965','0','run','cat greeting','run greeting:0x12c39d6f58ca486b81964e9aa3e7d635 "cat greeting"','waiting','staged',1.79528213351617765424e+09,'{"description":"","tags":[],"allow_failed_dependencies":false,"request_docker_image":"","request_time":"","request_memory":"2g","request_disk":"","request_cpus":1,"request_gpus":0,"request_queue":"","request_priority":0,"request_network":true,"exclude_patterns":[],"store":"","name":"waiting","created":1795282133,"actions":[]}','e9d8708b5412f08c35fcf9ce34070ac3b3b6ae7a81d55a1b00b090b6382869db',1,0,2147483648,0,0.0,'',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE bundle_user (
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	password TEXT, 
	is_root BOOLEAN NOT NULL, 
	created FLOAT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "bundle_user" VALUES('0','admin',NULL,1,1.7952821238225591182e+09);
CREATE TABLE dependency (
	child_id BIGINT NOT NULL, 
	position INTEGER NOT NULL, 
	child_path TEXT NOT NULL, 
	parent_uuid TEXT NOT NULL, 
	parent_path TEXT NOT NULL, 
	parent_name TEXT NOT NULL, 
	PRIMARY KEY (child_id, position)
);
INSERT INTO "dependency" VALUES(3,0,'greeting','0x12c39d6f58ca486b81964e9aa3e7d635','','greeting');
CREATE TABLE group_member (
	group_id TEXT NOT NULL, 
	user_id TEXT NOT NULL, 
	PRIMARY KEY (group_id, user_id), 
	FOREIGN KEY(group_id) REFERENCES user_group (id), 
	FOREIGN KEY(user_id) REFERENCES bundle_user (id)
);
CREATE TABLE schema_version (
	version INTEGER NOT NULL
);
INSERT INTO "schema_version" VALUES(1);
CREATE TABLE token (
	digest TEXT NOT NULL, 
	user_id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	expires FLOAT, 
	PRIMARY KEY (digest), 
	FOREIGN KEY(user_id) REFERENCES bundle_user (id)
);
INSERT INTO "token" VALUES('7ba29c89aa02320e212615699d83cec5d224e138cd9f8ce186d7e203d7039296','0','home',NULL);
INSERT INTO "token" VALUES('3049807355029dfb0fc7703309ea101d5329565cf8e1752b468ad63b2fa84a7d','0','worker',1.79536852724251699449e+09);
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
INSERT INTO "transition" VALUES(1795282123832682,'0x12c39d6f58ca486b81964e9aa3e7d635','0',NULL,'uploading',1.79528212647139883036e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795282123832683,'0x12c39d6f58ca486b81964e9aa3e7d635','0','uploading','ready',1.79528212648237562179e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795282123832684,'0x3ed7d885965b452188ddca072fe3d7ac','0',NULL,'created',1.79528212678300523761e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795282123832685,'0x3ed7d885965b452188ddca072fe3d7ac','0','created','staged',1.79528212678300523761e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795282123832686,'0x3ed7d885965b452188ddca072fe3d7ac','0','staged','starting',1.79528212773839855199e+09,1,'local-process-1-265ca902','');
INSERT INTO "transition" VALUES(1795282123832687,'0x3ed7d885965b452188ddca072fe3d7ac','0','starting','running',1.79528212778251409532e+09,1,'local-process-1-265ca902','');
INSERT INTO "transition" VALUES(1795282123832688,'0x3ed7d885965b452188ddca072fe3d7ac','0','running','ready',1.79528212780307412145e+09,1,'local-process-1-265ca902','');
INSERT INTO "transition" VALUES(1795282123832689,'0xdc106709360b454ea45eb49bf4163965','0',NULL,'created',1.79528213351617765424e+09,0,NULL,'');
INSERT INTO "transition" VALUES(1795282123832690,'0xdc106709360b454ea45eb49bf4163965','0','created','staged',1.79528213351617765424e+09,0,NULL,'');
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
	PRIMARY KEY (id)
);
CREATE INDEX bundle_by_name ON bundle (name);
CREATE INDEX bundle_by_owner ON bundle (owner_id, state);
CREATE INDEX bundle_by_state ON bundle (state);
CREATE INDEX ix_dependency_parent_uuid ON dependency (parent_uuid);
CREATE INDEX ix_transition_uuid ON transition (uuid);
COMMIT;
