-- Pictures that are duplicates of each other: found pairs, what people say of them, and the groups that follow.

-- `same`: by their pixels, whatever model is in use; `similar`: by the vectors or the hash that `version` names.
CREATE TABLE duplicate_pairs (
    a bigint NOT NULL REFERENCES images ON DELETE CASCADE,
    b bigint NOT NULL REFERENCES images ON DELETE CASCADE,
    tier text NOT NULL CHECK (tier IN ('same', 'similar')),
    score double precision NOT NULL,
    version text NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (a, b),
    CHECK (a < b)
);
CREATE INDEX duplicate_pairs_b ON duplicate_pairs (b);

-- A person's word, for good: no analysis touches this table.
CREATE TABLE duplicate_decisions (
    a bigint NOT NULL REFERENCES images ON DELETE CASCADE,
    b bigint NOT NULL REFERENCES images ON DELETE CASCADE,
    decision text NOT NULL CHECK (decision IN ('same', 'different')),
    decided_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (a, b),
    CHECK (a < b)
);
CREATE INDEX duplicate_decisions_b ON duplicate_decisions (b);

-- The groups, kept up to date with every change of the two above; a group's number is the id of its first picture.
CREATE TABLE duplicate_members (
    tier text NOT NULL,
    image_id bigint NOT NULL REFERENCES images ON DELETE CASCADE,
    group_id bigint NOT NULL,
    PRIMARY KEY (tier, image_id)
);
CREATE INDEX duplicate_members_group ON duplicate_members (tier, group_id, image_id);
CREATE INDEX duplicate_members_image ON duplicate_members (image_id);

-- Pictures that are still to be compared with the others: what is left is what this table says.
CREATE TABLE duplicates_due (
    image_id bigint PRIMARY KEY REFERENCES images ON DELETE CASCADE,
    due_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX duplicates_due_at ON duplicates_due (due_at, image_id);
-- By what everything has been compared: where that changes (another model, another method) all pictures are due again.
CREATE TABLE duplicates_versions (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    versions text[] NOT NULL
);
INSERT INTO duplicates_versions (versions) VALUES ('{}');

-- Hashes that differ in at most three of 64 bits are equal in one quarter at least.
CREATE INDEX images_phash_0 ON images (((phash >> 48) & 65535));
CREATE INDEX images_phash_1 ON images (((phash >> 32) & 65535));
CREATE INDEX images_phash_2 ON images (((phash >> 16) & 65535));
CREATE INDEX images_phash_3 ON images ((phash & 65535));
