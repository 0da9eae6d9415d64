"""The tables, and how a database of an earlier version comes to have them. No queries."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    insert,
    select,
    text,
    update,
)

from bundles.errors import UsageError

VERSION = 3

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

user = Table(
    "bundle_user",  # `user` is a reserved word in PostgreSQL
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("password", Text),  # scrypt; without one nobody can log in by password
    Column("is_root", Boolean, nullable=False),
    Column("created", Float, nullable=False),
)

token = Table(
    "token",
    metadata,
    Column("digest", Text, primary_key=True),  # sha256: the token itself is nowhere
    Column("user_id", Text, ForeignKey("bundle_user.id"), nullable=False),
    Column("kind", Text, nullable=False),  # home | given | access | refresh | worker
    Column("expires", Float),  # null: never
)

group = Table(
    "user_group",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("owner_id", Text, ForeignKey("bundle_user.id"), nullable=False),
)

group_member = Table(
    "group_member",
    metadata,
    Column("group_id", Text, ForeignKey("user_group.id"), primary_key=True),
    Column("user_id", Text, ForeignKey("bundle_user.id"), primary_key=True),
)

bundle = Table(
    "bundle",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # the order of creation
    Column("uuid", Text, nullable=False, unique=True),
    Column("owner_id", Text, nullable=False),
    Column("bundle_type", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("args", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("metadata", Text, nullable=False),  # JSON
    Column("fingerprint", Text, nullable=False),  # of the document it was created by
    # What it asks for, for those who count (`.shapes`)
    Column("cpus", Integer, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("time_seconds", Float, nullable=False),
    Column("queue", Text, nullable=False),
    # Its assignment
    Column("claim", Integer, nullable=False),
    Column("worker_id", Text),
    Column("session", Text),
    Column("kill_message", Text),
    Column("staged_status", Text),
    # Its contents: a name in the store
    Column("location", Text),
    Column("is_directory", Boolean),
    Column("size_bytes", BigInteger),
)
Index("bundle_by_state", bundle.c.state)
Index("bundle_by_owner", bundle.c.owner_id, bundle.c.state)
Index("bundle_by_name", bundle.c.name)

_STAGED = bundle.c.state == "staged"
staged = Index(
    "bundle_staged",
    # With the state in front SQLite prefers it to bundle_by_state.
    bundle.c.state,
    bundle.c.cpus,
    bundle.c.gpus,
    bundle.c.memory_bytes,
    bundle.c.disk_bytes,
    bundle.c.time_seconds,
    bundle.c.queue,
    bundle.c.created,
    bundle.c.owner_id,
    sqlite_where=_STAGED,
    postgresql_where=_STAGED,
)
"""All that is asked of a queue (`.shapes`), in the order in which it is counted, so that the rows
themselves need not be read. Of staged bundles only: of others it is asked by people, and rarely."""

dependency = Table(
    "dependency",
    metadata,
    Column("child_id", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("child_path", Text, nullable=False),
    Column("parent_uuid", Text, nullable=False, index=True),
    Column("parent_path", Text, nullable=False),
    Column("parent_name", Text, nullable=False),
)

transition = Table(
    "transition",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("uuid", Text, nullable=False, index=True),
    Column("owner_id", Text, nullable=False),
    Column("from_state", Text),
    Column("to_state", Text, nullable=False),
    Column("time", Float, nullable=False),
    Column("claim", Integer, nullable=False),
    Column("worker_id", Text),
    Column("reason", Text, nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("token_digest", Text),
    Column("is_live", Boolean, nullable=False),
    Column("session", Text),
    Column("former_sessions", Text, nullable=False),  # JSON list, the latest last
    Column("facts", Text, nullable=False),  # JSON: what it last said that it is and has
    Column("seen", Float, nullable=False),
    Column("drain_reason", Text),  # its owner wants it to take nothing more; null: it may
)

lease = Table(
    "lease",
    metadata,
    Column("user_id", Text, ForeignKey("bundle_user.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("fence", BigInteger, nullable=False),  # grows whenever it changes hands
    Column("holder", Text),  # null: nobody has it
    Column("ttl_seconds", Float, nullable=False),
)


def migrate(connection: Connection) -> None:
    """Bring the database to ``VERSION``. Raises UsageError when it is of a later one."""
    metadata.create_all(connection, tables=[schema_version])
    found = connection.execute(select(func.max(schema_version.c.version))).scalar()
    if found is None:
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=VERSION))
    elif found > VERSION:
        raise UsageError(
            f"the database is of version {found} and this server knows up to {VERSION}: "
            "start the server that made it, or a later one"
        )
    elif found < VERSION:
        # First, since it begins the transaction: SQLite's driver begins none for a DDL statement.
        connection.execute(update(schema_version).values(version=VERSION))
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))  # many bundles take longer
        if found < 2:
            connection.execute(text("ALTER TABLE worker ADD COLUMN drain_reason TEXT"))
            metadata.create_all(connection)
        staged.create(connection)
