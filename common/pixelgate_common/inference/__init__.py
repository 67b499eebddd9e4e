"""What every service with model weights shares: finding, locking, converting, running and unloading them."""
