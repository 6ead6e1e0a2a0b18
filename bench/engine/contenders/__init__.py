"""One module per engine. Each runs in the interpreter that has the engine, and serves a line."""
