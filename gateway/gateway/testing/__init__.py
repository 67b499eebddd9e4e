"""Small stand-ins for the inner services, on the same contracts: what the tests of the gateway run against."""
