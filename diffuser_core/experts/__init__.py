"""Scripted demonstrators and the collection of data from them."""
