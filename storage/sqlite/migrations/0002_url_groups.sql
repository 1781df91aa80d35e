-- Endpoints (url, name) and headers are JSON: a group is read and written as a whole.
CREATE TABLE url_groups (
    tenant INTEGER NOT NULL,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    endpoints TEXT NOT NULL CHECK (endpoints <> '[]'),
    headers TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT;
