"""Parts of the load benches: several workers on one server, many callers."""
