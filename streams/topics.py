"""Topics as a cluster knows them: the table -> what to create, with our names and counts."""

from schemas.topics import TOPICS, partitions
from streams.kafka import TopicSpec
from streams.settings import Settings


def specs(settings: Settings) -> list[TopicSpec]:
    """Render every topic of the table."""
    return [
        TopicSpec(
            settings.physical(topic.name),
            partitions(topic, settings.partitions),
            topic.configs(),
            settings.replication,
        )
        for topic in TOPICS
    ]
