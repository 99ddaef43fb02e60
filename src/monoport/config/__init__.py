"""Configuration: a file -> one frozen Config, or one line that says where the file is wrong."""

from monoport.config.load import load, parse
from monoport.config.model import Config, Database, DatabaseTls
from monoport.config.source import ConfigError
from monoport.config.values import Address

__all__ = ["Address", "Config", "ConfigError", "Database", "DatabaseTls", "load", "parse"]
