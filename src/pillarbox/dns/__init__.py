"""DNS: `resolver` is asked by lookup on behalf of everyone."""
