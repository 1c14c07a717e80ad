"""Messages between coordinator and sites: their bytes, signatures and terms."""
