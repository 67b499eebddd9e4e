-- The whole first schema. Core SQL only: no contrib extension (the bundled Postgres has none).

-- One row that counts changes. Whoever adds pictures or vectors takes the next number in the transaction that adds
-- them; the row's lock makes the order of numbers the order of commits, so "everything up to number n" is a snapshot
-- that a cursor can carry: nothing with a smaller number can turn up later.
CREATE TABLE clock (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    seq bigint NOT NULL
);
INSERT INTO clock (seq) VALUES (0);

-- array_to_string is only STABLE because of types whose text depends on settings; for text[] the result never changes.
CREATE FUNCTION words_of_tags(tags text[]) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN array_to_string(tags, ' ');

CREATE TABLE images (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    seq bigint NOT NULL UNIQUE,
    sha256 bytea NOT NULL UNIQUE CHECK (length(sha256) = 32),
    filename text,
    media_type text NOT NULL,
    format text NOT NULL,
    width integer NOT NULL CHECK (width > 0),
    height integer NOT NULL CHECK (height > 0),
    bytes bigint NOT NULL CHECK (bytes > 0),
    has_alpha boolean NOT NULL,                    -- decides the format of the variants
    created_at timestamptz NOT NULL DEFAULT now(),
    captured_at timestamptz,
    source_url text,
    page_url text,
    page_title text,
    alt_text text,
    tags text[] NOT NULL DEFAULT '{}',
    attributes jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(attributes) = 'object'),
    exif jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(exif) = 'object'),
    caption text,
    caption_by text CHECK (caption_by IN ('model', 'person')),
    objects jsonb NOT NULL DEFAULT '[]',
    object_counts jsonb NOT NULL DEFAULT '{}',     -- label -> how many, what `objects.<label>` filters ask
    palette jsonb NOT NULL DEFAULT '[]',
    phash bigint NOT NULL,
    thumbhash bytea NOT NULL,
    -- Two configurations side by side: `english` finds "dogs" by "dog" in sentences, `simple` keeps names as they are
    -- and, unlike stems, matches any beginning of a word.
    search tsvector NOT NULL GENERATED ALWAYS AS (
        setweight(to_tsvector('english', coalesce(caption, '')), 'A')
        || setweight(to_tsvector('simple', coalesce(caption, '')), 'A')
        || setweight(to_tsvector('english', words_of_tags(tags)), 'A')
        || setweight(to_tsvector('simple', words_of_tags(tags)), 'A')
        || setweight(jsonb_to_tsvector('english', object_counts, '["key"]'), 'B')
        || setweight(jsonb_to_tsvector('simple', object_counts, '["key"]'), 'B')
        || setweight(to_tsvector('simple', regexp_replace(coalesce(filename, ''), '[^[:alnum:]]+', ' ', 'g')), 'B')
        || setweight(to_tsvector('english', coalesce(alt_text, '')), 'C')
        || setweight(to_tsvector('simple', coalesce(alt_text, '')), 'C')
        || setweight(to_tsvector('english', coalesce(page_title, '')), 'D')
        || setweight(to_tsvector('simple', coalesce(page_title, '')), 'D')
    ) STORED
);
CREATE INDEX images_search ON images USING gin (search);
CREATE INDEX images_tags ON images USING gin (tags);
CREATE INDEX images_attributes ON images USING gin (attributes jsonb_path_ops);
CREATE INDEX images_exif ON images USING gin (exif jsonb_path_ops);
CREATE INDEX images_object_counts ON images USING gin (object_counts);
CREATE INDEX images_created_at ON images (created_at);
CREATE INDEX images_captured_at ON images (captured_at, id);
CREATE INDEX images_bytes ON images (bytes, id);
CREATE INDEX images_width ON images (width);
CREATE INDEX images_height ON images (height);
CREATE INDEX images_format ON images (format);
CREATE INDEX images_media_type ON images (media_type);
CREATE INDEX images_caption_by ON images (caption_by);
CREATE INDEX images_filename ON images (filename, id);
-- text_pattern_ops: prefixes find their range whatever the database's collation is.
CREATE INDEX images_filename_prefix ON images (filename text_pattern_ops);
CREATE INDEX images_source_url_prefix ON images (left(source_url, 500) text_pattern_ops);
CREATE INDEX images_page_url_prefix ON images (left(page_url, 500) text_pattern_ops);

-- What each stage's results must come from. `enabled` says which stages this installation runs.
CREATE TABLE stages (
    stage text PRIMARY KEY,
    enabled boolean NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    fingerprint text,
    model text
);

-- What is left to do is what this table says is pending; there is no queue beside it.
CREATE TABLE analyses (
    image_id bigint NOT NULL REFERENCES images ON DELETE CASCADE,
    stage text NOT NULL REFERENCES stages,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'done', 'failed')),
    fingerprint text,                              -- of the result; NULL before the first one
    attempts integer NOT NULL DEFAULT 0,
    token uuid,
    lease_until timestamptz,
    not_before timestamptz NOT NULL DEFAULT now(),
    took_ms double precision,
    error text,
    finished_at timestamptz,
    PRIMARY KEY (image_id, stage),
    CHECK ((state = 'running') = (token IS NOT NULL AND lease_until IS NOT NULL))
);
-- A lease takes rows in this order: those of new pictures in the order of arrival, those that wait for another attempt
-- when their time has come.
CREATE INDEX analyses_pending ON analyses (stage, not_before, image_id) WHERE state = 'pending';
CREATE INDEX analyses_running ON analyses (stage, lease_until) WHERE state = 'running';
CREATE INDEX analyses_failed ON analyses (stage, finished_at) WHERE state = 'failed';
CREATE INDEX analyses_done ON analyses (stage, finished_at) WHERE state = 'done';

-- All vectors of one space and fingerprint. At most one generation of a space is the one that search uses.
CREATE TABLE generations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    space text NOT NULL,
    fingerprint text NOT NULL,
    model text NOT NULL,
    dim integer NOT NULL CHECK (dim > 0),
    state text NOT NULL DEFAULT 'building' CHECK (state IN ('building', 'active', 'retired')),
    created_at timestamptz NOT NULL DEFAULT now(),
    activated_at timestamptz,
    UNIQUE (space, fingerprint)
);
CREATE UNIQUE INDEX generations_one_active ON generations (space) WHERE state = 'active';

-- The truth of every vector, little-endian float16; the vector index can be rebuilt from here without a model.
CREATE TABLE vectors (
    generation_id bigint NOT NULL REFERENCES generations ON DELETE CASCADE,
    image_id bigint NOT NULL REFERENCES images ON DELETE CASCADE,
    seq bigint NOT NULL,
    vector bytea NOT NULL,
    PRIMARY KEY (generation_id, image_id)
);
CREATE INDEX vectors_image ON vectors (image_id);
CREATE INDEX vectors_seq ON vectors (generation_id, seq);

-- What is still to be removed from the vector index and the object store after a picture's row is gone. Written in the
-- transaction that deletes the row, worked off after it, and again at every start.
CREATE TABLE removals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    image_id bigint NOT NULL,
    sha256 bytea NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now()
);

-- Totals, kept as changes to be summed up: `images`, `bytes`, and `<stage>.<state>`. Counting a million rows takes tenths
-- of a second, and a single row that is counted up would make every writer wait for every other one. A change is one
-- more row, in the transaction that makes it; storage-service folds them together every few seconds.
CREATE TABLE tallies (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    what text NOT NULL,
    n bigint NOT NULL
);

CREATE FUNCTION tally_images() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO tallies (what, n) SELECT 'images', count(*) FROM changed HAVING count(*) > 0
            UNION ALL SELECT 'bytes', sum(bytes) FROM changed HAVING count(*) > 0;
    ELSE
        INSERT INTO tallies (what, n) SELECT 'images', -count(*) FROM changed HAVING count(*) > 0
            UNION ALL SELECT 'bytes', -sum(bytes) FROM changed HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER images_inserted AFTER INSERT ON images
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION tally_images();
CREATE TRIGGER images_deleted AFTER DELETE ON images
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION tally_images();

CREATE FUNCTION tally_analyses() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO tallies (what, n) SELECT stage || '.' || state, count(*) FROM after GROUP BY stage, state;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO tallies (what, n) SELECT stage || '.' || state, -count(*) FROM before GROUP BY stage, state;
    ELSE
        INSERT INTO tallies (what, n)
            SELECT stage || '.' || state, sum(d)
            FROM (SELECT stage, state, 1 AS d FROM after UNION ALL SELECT stage, state, -1 FROM before) AS changes
            GROUP BY stage, state HAVING sum(d) <> 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER analyses_inserted AFTER INSERT ON analyses
    REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION tally_analyses();
CREATE TRIGGER analyses_updated AFTER UPDATE ON analyses
    REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION tally_analyses();
CREATE TRIGGER analyses_deleted AFTER DELETE ON analyses
    REFERENCING OLD TABLE AS before FOR EACH STATEMENT EXECUTE FUNCTION tally_analyses();
