"""The server-side scripts: one class each, whose fields are the script's KEYS and ARGV.

The file of the same name in ``worker/store/lua`` says how the script works.
"""
