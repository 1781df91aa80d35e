-- Codes: deliveries.state 1 CREATED, 2 ACTIVE, 3 RETRY; events.change as in relay/domain/delivery.py.

-- What is to be sent, written once. Bodies live here and nowhere else, last, so that reading the other columns
-- of a large message never walks its overflow pages.
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    tenant INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    url TEXT NOT NULL,
    host TEXT NOT NULL,
    path TEXT NOT NULL,
    method TEXT NOT NULL,
    headers TEXT NOT NULL,
    max_retries INTEGER NOT NULL,
    retry_delay TEXT,
    timeout_ms INTEGER,
    caller_ip TEXT,
    url_group TEXT,
    endpoint TEXT,
    schedule_id TEXT,
    queue TEXT,
    flow_key TEXT,
    labels TEXT,
    terms TEXT,
    dedup_key BLOB,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX messages_by_url_group ON messages (tenant, url_group) WHERE url_group IS NOT NULL;
CREATE INDEX messages_by_schedule ON messages (tenant, schedule_id) WHERE schedule_id IS NOT NULL;
CREATE INDEX messages_by_queue ON messages (tenant, queue) WHERE queue IS NOT NULL;
CREATE INDEX messages_by_flow_key ON messages (tenant, flow_key) WHERE flow_key IS NOT NULL;

CREATE TABLE message_labels (
    tenant INTEGER NOT NULL,
    label TEXT NOT NULL,
    message_id INTEGER NOT NULL,
    PRIMARY KEY (tenant, label, message_id)
) STRICT, WITHOUT ROWID;

-- Where the living stand; the row goes with the settlement that ends the delivery. For an ACTIVE row `due_at` is
-- the end of its lease, so that one index range finds what is due and what was abandoned. NULL: held by a gate.
CREATE TABLE deliveries (
    tenant INTEGER NOT NULL,
    id INTEGER NOT NULL,
    state INTEGER NOT NULL CHECK (state IN (1, 2, 3)),
    due_at INTEGER,
    retried INTEGER NOT NULL CHECK (retried >= 0),
    claim_no INTEGER NOT NULL CHECK (claim_no >= 0),
    lost_leases INTEGER NOT NULL CHECK (lost_leases BETWEEN 0 AND claim_no),
    cancel_requested INTEGER NOT NULL CHECK (cancel_requested IN (0, 1)),
    claimed_at INTEGER,
    PRIMARY KEY (tenant, id),
    CHECK (state <> 1 OR retried = 0),
    CHECK (state <> 3 OR retried > 0),
    CHECK ((state = 2) = (claimed_at IS NOT NULL)),
    CHECK (state <> 2 OR (claim_no > 0 AND due_at IS NOT NULL)),
    CHECK (cancel_requested = 0 OR state = 2)
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL;

-- History, one row for each change; a dead letter has the position of the change that made it as its id.
CREATE TABLE events (
    tenant INTEGER NOT NULL,
    position INTEGER NOT NULL,
    at INTEGER NOT NULL,
    change INTEGER NOT NULL CHECK (change > 0),
    message_id INTEGER NOT NULL,
    retried INTEGER NOT NULL,
    next_at INTEGER,
    duration_ms INTEGER,
    status INTEGER,
    error TEXT,
    response_headers TEXT,
    response_body BLOB,
    PRIMARY KEY (tenant, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX events_by_message ON events (message_id);
-- Everything but CREATED, STARTED_AT_ONCE, STARTED and DELIVERED: what people look for, and rare.
CREATE INDEX events_unusual ON events (tenant, position) WHERE change > 4;

CREATE TABLE dead_letters (
    tenant INTEGER NOT NULL,
    id INTEGER NOT NULL,
    message_id INTEGER NOT NULL,
    failed_at INTEGER NOT NULL,
    retried INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    status INTEGER,
    error TEXT,
    response_headers TEXT NOT NULL,
    response_body BLOB NOT NULL,
    PRIMARY KEY (tenant, id),
    CHECK (status IS NOT NULL OR error IS NOT NULL)
) STRICT;
CREATE INDEX dead_letters_by_message ON dead_letters (message_id);

CREATE TABLE dedup (
    tenant INTEGER NOT NULL,
    key BLOB NOT NULL,
    message_id INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX dedup_by_expiry ON dedup (expires_at);

CREATE TABLE schedules (
    tenant INTEGER NOT NULL,
    id TEXT NOT NULL,
    cron TEXT NOT NULL,
    draft TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    catch_up TEXT NOT NULL CHECK (catch_up IN ('last', 'none', 'all')),
    overlap TEXT NOT NULL CHECK (overlap IN ('allow', 'skip')),
    paused INTEGER NOT NULL CHECK (paused IN (0, 1)),
    next_at INTEGER,
    last_fired_at INTEGER,
    error TEXT,
    PRIMARY KEY (tenant, id),
    CHECK (paused = 0 OR next_at IS NULL)
) STRICT;
CREATE INDEX schedules_due ON schedules (next_at) WHERE next_at IS NOT NULL;

-- One row for each tick that was dealt with; `outcome` is the name of a RunOutcome. `states` (JSON, id to
-- delivered or not) is noted when the events that told it are forgotten.
CREATE TABLE runs (
    tenant INTEGER NOT NULL,
    schedule_id TEXT NOT NULL,
    tick_at INTEGER NOT NULL,
    fired_at INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    message_ids TEXT NOT NULL,
    states TEXT,
    PRIMARY KEY (tenant, schedule_id, tick_at)
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_by_tick ON runs (tick_at);

CREATE TABLE tenants (
    id INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL,
    current_key TEXT NOT NULL,
    next_key TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- Only what a token hashes to is kept.
CREATE TABLE tokens (
    hash BLOB PRIMARY KEY,
    tenant INTEGER NOT NULL,
    read_only INTEGER NOT NULL CHECK (read_only IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_tenant ON tokens (tenant);

CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What the planner is to believe of history, from the first row to the last: a tenant has very many events, few of
-- them unusual. Nothing else is measured, so that no plan depends on when somebody measured.
ANALYZE;
DELETE FROM sqlite_stat1;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('events', 'events', '10000000 5000000 1'),
    ('events', 'events_by_message', '10000000 3 1 1'),
    ('events', 'events_unusual', '100000 50000 1');
ANALYZE sqlite_schema;
