-- What search by colour ranks: the palettes once more, in a compact form that is read into memory (`palettes`).
CREATE TABLE palettes (
    image_id bigint PRIMARY KEY REFERENCES images ON DELETE CASCADE,
    seq bigint NOT NULL,                           -- the clock when the picture got its first palette: its place in snapshots
    changed bigint NOT NULL,                       -- the clock at the last change: memory reads what is newer than it knows
    whole bytea NOT NULL CHECK (length(whole) = 64),
    foreground bytea CHECK (length(foreground) = 64)
);
CREATE INDEX palettes_changed ON palettes (changed, image_id);

-- Palettes of before have no row here: they are made anew in the background.
UPDATE analyses SET state = 'pending', token = NULL, lease_until = NULL, attempts = 0, not_before = now(), error = NULL
    WHERE stage IN ('palette', 'cutout') AND state <> 'pending';
