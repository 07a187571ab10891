"""End-to-end workflows that combine the other packages."""
