"""The object store: originals and variants, by key; a directory on one machine, any S3 server elsewhere."""
