"""Evaluation of live models on live data: neither paths nor recipes are known here."""
