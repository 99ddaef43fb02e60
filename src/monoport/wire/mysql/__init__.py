"""MySQL and MariaDB on the wire: packets, the opening, commands, statements, compression. Pure."""
