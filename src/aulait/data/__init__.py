"""Sources of records, the clients' data, partitions and public texts."""
