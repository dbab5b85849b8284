"""The test servers themselves."""

from __future__ import annotations

import pika
import psycopg
import pytest
import redis

pytestmark = pytest.mark.component


def test_each_test_gets_a_database_of_its_own(make_database):
    first, second = make_database(), make_database()

    with psycopg.connect(first.dsn) as connection:
        connection.execute("CREATE TABLE mine (id int)")

    with psycopg.connect(second.dsn) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM mine")


def test_redis_answers(fresh_redis_url):
    with redis.Redis.from_url(fresh_redis_url) as client:
        client.set("key", "value")

        assert client.get("key") == b"value"


def test_the_broker_has_quorum_queues(broker_url):
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    channel = connection.channel()

    declared = channel.queue_declare("test.servers", durable=True, arguments={"x-queue-type": "quorum"})
    channel.queue_delete("test.servers")
    connection.close()

    assert declared.method.message_count == 0
