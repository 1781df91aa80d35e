-- What is different for one tenant is JSON (TenantLimits): '{}' says nothing, and everything is as the relay is set.
ALTER TABLE tenants ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';
ALTER TABLE tenants ADD COLUMN disabled_at INTEGER;

-- `issued` tokens were made by an operator's command. The others are those of a start, and the next start judges them.
ALTER TABLE tokens ADD COLUMN issued INTEGER NOT NULL DEFAULT 0 CHECK (issued IN (0, 1));
ALTER TABLE tokens ADD COLUMN label TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN expires_at INTEGER;
