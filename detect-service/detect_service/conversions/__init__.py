"""Child processes that load models by their own libraries, and write what the service needs in place of them."""
