"""The methods that REFRAG is compared with, each on the harness's contracts."""
