-- What the stages objects, palette and cutout keep beside what 0001 has room for, and stages that run on request.

-- `objects.dog = 0` is true of a picture in which no dog was found, and not of one in which nobody has looked yet.
ALTER TABLE images ADD COLUMN objects_known boolean NOT NULL DEFAULT false;
-- Of what alpha or the cutout leaves visible.
ALTER TABLE images ADD COLUMN foreground_palette jsonb NOT NULL DEFAULT '[]';
-- The file is put before its result comes: `cutout_token` is the lease under which that was done, `cutout_digest` the
-- SHA-256 of the file that stands in the object store, and it is shown once `has_cutout`.
ALTER TABLE images ADD COLUMN has_cutout boolean NOT NULL DEFAULT false;
ALTER TABLE images ADD COLUMN cutout_digest bytea;
ALTER TABLE images ADD COLUMN cutout_token uuid;

UPDATE images SET objects_known = true
    WHERE id IN (SELECT image_id FROM analyses WHERE stage = 'objects' AND state = 'done') OR object_counts <> '{}';

-- A stage that is on without being automatic has rows only for the pictures that somebody asked it for.
ALTER TABLE stages ADD COLUMN automatic boolean NOT NULL DEFAULT true;
