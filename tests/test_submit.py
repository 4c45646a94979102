"""`distmeta submit` against a real Ray head in its own process group and private directories."""
