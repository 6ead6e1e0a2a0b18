"""The kill table: a real fleet under load, one fault per row, and what it cost."""
