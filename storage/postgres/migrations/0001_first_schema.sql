-- Codes: deliveries.state 1 CREATED, 2 ACTIVE, 3 RETRY; events.change as in relay/domain/delivery.py. Columns and
-- meanings are those of the SQLite schema, so that one text can read both. Wide columns first: no padding.

-- What is to be sent, written once. Bodies are not compressed (most are small or compressed already), and leave
-- the row only beyond half a page.
CREATE TABLE messages (
    id bigint PRIMARY KEY,
    tenant bigint NOT NULL,
    created_at bigint NOT NULL,
    not_before bigint NOT NULL,
    timeout_ms bigint,
    max_retries bigint NOT NULL,
    url text NOT NULL,
    host text NOT NULL,
    path text NOT NULL,
    method text NOT NULL,
    headers text NOT NULL,
    retry_delay text,
    caller_ip text,
    url_group text,
    endpoint text,
    schedule_id text,
    queue text,
    flow_key text,
    labels text,
    terms text,
    dedup_key bytea,
    body bytea NOT NULL
) WITH (
    toast_tuple_target = 4080,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);
ALTER TABLE messages ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE INDEX messages_by_url_group ON messages (tenant, url_group) WHERE url_group IS NOT NULL;
CREATE INDEX messages_by_schedule ON messages (tenant, schedule_id) WHERE schedule_id IS NOT NULL;
CREATE INDEX messages_by_queue ON messages (tenant, queue) WHERE queue IS NOT NULL;
CREATE INDEX messages_by_flow_key ON messages (tenant, flow_key) WHERE flow_key IS NOT NULL;

CREATE TABLE message_labels (
    tenant bigint NOT NULL,
    message_id bigint NOT NULL,
    label text NOT NULL,
    PRIMARY KEY (tenant, label, message_id)
);

-- Where the living stand; the row goes with the settlement that ends the delivery. For an ACTIVE row `due_at` is
-- the end of its lease, so that one index range finds what is due and what was abandoned. NULL: held by a gate.
-- Most rows are inserted once and deleted once. Vacuum comes early, at full speed, and always cleans the index,
-- where every claim walks over what is dead; it never locks the table to give space back.
CREATE TABLE deliveries (
    id bigint NOT NULL,
    tenant bigint NOT NULL,
    due_at bigint,
    claimed_at bigint,
    claim_no integer NOT NULL CHECK (claim_no >= 0),
    retried integer NOT NULL CHECK (retried >= 0),
    lost_leases integer NOT NULL CHECK (lost_leases BETWEEN 0 AND claim_no),
    state smallint NOT NULL CHECK (state IN (1, 2, 3)),
    cancel_requested smallint NOT NULL CHECK (cancel_requested IN (0, 1)),
    PRIMARY KEY (tenant, id),
    CHECK (state <> 1 OR retried = 0),
    CHECK (state <> 3 OR retried > 0),
    CHECK ((state = 2) = (claimed_at IS NOT NULL)),
    CHECK (state <> 2 OR (claim_no > 0 AND due_at IS NOT NULL)),
    CHECK (cancel_requested = 0 OR state = 2)
) WITH (
    fillfactor = 90,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_threshold = 100000,
    vacuum_index_cleanup = on,
    vacuum_truncate = off
);
CREATE INDEX deliveries_due ON deliveries (due_at, id) WHERE due_at IS NOT NULL;

-- History, one row for each change; a dead letter has the position of the change that made it as its id.
CREATE TABLE events (
    tenant bigint NOT NULL,
    position bigint NOT NULL,
    at bigint NOT NULL,
    message_id bigint NOT NULL,
    next_at bigint,
    duration_ms bigint,
    status bigint,
    retried integer NOT NULL,
    change smallint NOT NULL CHECK (change > 0),
    error text,
    response_headers text,
    response_body bytea,
    PRIMARY KEY (tenant, position)
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);
CREATE INDEX events_by_message ON events (message_id);
-- Everything but CREATED, STARTED_AT_ONCE, STARTED and DELIVERED: what people look for, and rare.
CREATE INDEX events_unusual ON events (tenant, position) WHERE change > 4;

CREATE TABLE dead_letters (
    tenant bigint NOT NULL,
    id bigint NOT NULL,
    message_id bigint NOT NULL,
    failed_at bigint NOT NULL,
    started_at bigint NOT NULL,
    ended_at bigint NOT NULL,
    status bigint,
    retried integer NOT NULL,
    error text,
    response_headers text NOT NULL,
    response_body bytea NOT NULL,
    PRIMARY KEY (tenant, id),
    CHECK (status IS NOT NULL OR error IS NOT NULL)
);
CREATE INDEX dead_letters_by_message ON dead_letters (message_id);

CREATE TABLE dedup (
    tenant bigint NOT NULL,
    message_id bigint NOT NULL,
    expires_at bigint NOT NULL,
    key bytea NOT NULL,
    PRIMARY KEY (tenant, key)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX dedup_by_expiry ON dedup (expires_at);

CREATE TABLE schedules (
    tenant bigint NOT NULL,
    id text NOT NULL,
    cron text NOT NULL,
    draft text NOT NULL,
    created_at bigint NOT NULL,
    revision bigint NOT NULL,
    catch_up text NOT NULL CHECK (catch_up IN ('last', 'none', 'all')),
    overlap text NOT NULL CHECK (overlap IN ('allow', 'skip')),
    paused smallint NOT NULL CHECK (paused IN (0, 1)),
    next_at bigint,
    last_fired_at bigint,
    error text,
    PRIMARY KEY (tenant, id),
    CHECK (paused = 0 OR next_at IS NULL)
);
CREATE INDEX schedules_due ON schedules (next_at) WHERE next_at IS NOT NULL;

-- One row for each tick that was dealt with; `outcome` is the name of a RunOutcome. `states` (JSON, id to
-- delivered or not) is noted when the events that told it are forgotten.
CREATE TABLE runs (
    tenant bigint NOT NULL,
    schedule_id text NOT NULL,
    tick_at bigint NOT NULL,
    fired_at bigint NOT NULL,
    outcome text NOT NULL,
    message_ids text NOT NULL,
    states text,
    PRIMARY KEY (tenant, schedule_id, tick_at)
);
CREATE INDEX runs_by_tick ON runs (tick_at);

CREATE TABLE tenants (
    id bigint PRIMARY KEY,
    user_id text NOT NULL,
    current_key text NOT NULL,
    next_key text NOT NULL,
    created_at bigint NOT NULL
);

-- Only what a token hashes to is kept.
CREATE TABLE tokens (
    hash bytea PRIMARY KEY,
    tenant bigint NOT NULL,
    created_at bigint NOT NULL,
    read_only smallint NOT NULL CHECK (read_only IN (0, 1))
);
CREATE INDEX tokens_by_tenant ON tokens (tenant);

CREATE TABLE settings (
    name text PRIMARY KEY,
    value text NOT NULL
);

-- How much lives and how much is dead, as a ledger: every transaction adds what it changed, the depth is the sum.
-- No row is ever updated, so that no two transactions wait for each other; the sums are folded together now and then.
CREATE TABLE depths (
    live bigint NOT NULL,
    dead_letters bigint NOT NULL
) WITH (autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0, vacuum_truncate = off);

-- Which process has which number; the numbers tell the ids of processes apart. By the database's clock.
CREATE TABLE nodes (
    number smallint PRIMARY KEY CHECK (number BETWEEN 0 AND 255),
    owner text,
    seen_at timestamptz NOT NULL
) WITH (fillfactor = 50);
