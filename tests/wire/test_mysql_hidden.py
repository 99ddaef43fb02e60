"""Statements in disguise: each was taken by a real MariaDB 10.11 for what it hides, and by us for something else."""

import pytest

from monoport.wire.mysql.sql import Kill, ReadFile, Unclear, Use, look


@pytest.mark.parametrize(
    "text",
    [
        b"/*!999999 SELECT */ USE secret",
        b"USE /*!999999 mine */ secret",
        b"/*!999999 SELECT 1 */ /*!USE*/ secret",
        b"/*M!999999 SELECT */ USE secret",
        b"--\x01 x\nUSE secret",
        b"select 1;--\x7f;\nUSE secret",
        b"/*!999999 a b c d e f g h i*/" * 3 + b" USE secret",
        b"USE " + b"/*!999999 a*/" * 12 + b" secret",
        b"USE\xa0secret",
        b"\xa0USE secret",
        b"SET STATEMENT max_statement_time=5, sort_buffer_size=100000, join_buffer_size=100000 FOR USE secret",
        b"USE /*!999999 mine or */ /*!999999 yours */ secret",
        b"/*!999999 USE */ /*!999998 mine or yours */ secret",
        b"USE secret",
        b"select 1; use `secret`",
    ],
)
def test_another_database_is_seen(text: bytes) -> None:
    assert Use("secret") in look(text)


@pytest.mark.parametrize(
    "text",
    [
        b"/*!999999 SELECT */ KILL 5",
        b"KILL /*!999999 6 */ 5",
        b"BEGIN NOT ATOMIC KILL 5; END",
        b"IF 1 THEN KILL QUERY 5; END IF",
        b"SET STATEMENT max_statement_time=5 FOR KILL 5",
        b"KILL USER somebody",
    ],
)
def test_a_kill_that_is_not_plain_is_refused(text: bytes) -> None:
    assert Kill(None) in look(text)


@pytest.mark.parametrize(
    "text",
    [
        b"/*!999999 ' */ USE secret -- '",
        b"/*!999999 -- x */ USE secret",
        b"USE /*!999999 mine; */ secret",
        b"/*!999999 a*/" * 65 + b" USE secret",
        b"USE " + b"/*!999999 a*/" * 65 + b" secret",
    ],
)
def test_where_servers_do_not_agree_on_the_end_of_a_comment_nothing_passes(text: bytes) -> None:
    assert look(text) == [Unclear()]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"KILL 5", [Kill(5, 5, 6)]),
        (b"/* why */ kill soft query 17 ;", [Kill(17, 26, 28)]),
        (b"USE `caf\xc3\xa0`", [Use("cafà")]),
        (b"use caf\xc3\xa0", [Use("cafà")]),
        (b"load data local infile 'x' into table t", [ReadFile()]),
        (b"select * from t use index (i) where a = 'kill 5'", []),
        (b"select t.kill, @kill from t", []),
        (b"/*!50001 create view v as select * from t use index (i) */", []),
        (
            b"/*!50003 create */ /*!50003 trigger t before insert on x begin set @local=1; set @b=2; end */",
            [],
        ),
        (b"insert into t values ('it''s; use me')", []),
        (b"/*!40101 SET @local=1 */; USE `mine`;", [Use("mine")]),
    ],
)
def test_what_is_plain_is_read_plainly(text: bytes, found: list[object]) -> None:
    assert look(text) == found
