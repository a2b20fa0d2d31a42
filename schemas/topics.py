"""Topics: the one table of who may say what where; every physical form of a topic is rendered from it."""

from dataclasses import dataclass

from schemas import events as e
from schemas import learned, posts
from schemas.facts import Event
from schemas.ids import prompt_of

DAY_MS = 86_400_000
KEEP_FOR_EVER = -1
RECORD_BYTES_MAX = 1_000_000  # a little under Kafka's default batch limit: what is refused, is refused at our edge


@dataclass(frozen=True)
class Topic:
    """One topic: `key` names the event's field that orders it, `wide` gives it the configured number of partitions."""

    name: str
    key: str | None
    wide: bool
    keep_ms: int
    events: tuple[type[Event], ...]
    about: str
    compacted: bool = False
    outside: bool = False  # others than our stages write here too: origins are not believed, ids are

    def key_of(self, event: Event) -> str | None:
        """Read the event's key; a subject's key is the prompt it begins with; Ticked has none (it goes everywhere)."""
        if self.key is None or type(event) is e.Ticked:
            return None
        value: str = getattr(event, self.key)
        return prompt_of(value) if self.key == "subject" else value

    def configs(self) -> dict[str, str]:
        """Render Kafka's topic settings.

        What others write is unpacked by the broker, and its limit holds for that: 1 MB that says a gigabyte once it
        is unpacked would stand in the log for ever, and every reader unpacks a batch in one piece.
        """
        if self.compacted:
            kept = {"cleanup.policy": "compact", "retention.ms": "-1"}
        else:
            kept = {"cleanup.policy": "delete", "retention.ms": str(self.keep_ms), "retention.bytes": "-1"}
        return kept | {"compression.type": "uncompressed"} if self.outside else kept


TWEETS = Topic(
    "tweets",
    "owner",
    True,
    KEEP_FOR_EVER,
    (
        posts.PostObserved,
        posts.PostEdited,
        posts.PostDeleted,
        posts.EngagementObserved,
        posts.ReactionObserved,
        posts.ReactionRetracted,
        posts.IntentDeclared,
        posts.AuthorHidden,
        posts.AuthorShown,
        posts.AuthorErased,
    ),
    "posts and reactions as sources gave them; text sealed per author",
    outside=True,
)
FEEDBACK = Topic(
    "feedback",
    "subject",
    True,
    KEEP_FOR_EVER,
    (e.FeedbackGiven, e.FeedbackRetracted),
    "people's judgements; any client may write here",
    outside=True,
)
ANSWERS = Topic(
    "answers",
    "prompt",
    True,
    KEEP_FOR_EVER,
    (e.AnswerGiven,),
    "what the server said, by exactly which version",
    outside=True,
)
FEATURES = Topic(
    "features",
    "owner",
    True,
    30 * DAY_MS,
    (e.PostDescribed, e.EngagementDescribed),
    "what was extracted from posts and reactions, in numbers",
)
REACTIONS = Topic(
    "reactions",
    "post",
    True,
    30 * DAY_MS,
    (e.PostPlaced, e.ReactionNoted, e.ReactionWithdrawn),
    "single reactions to posts of sources that give no counts",
)
INTERACTIONS = Topic(
    "interactions",
    None,
    False,
    30 * DAY_MS,
    (e.InteractionObserved, e.InteractionWithdrawn, e.PostNoted, e.AuthorWithdrawn, e.Ticked),
    "typed, timed edges between authors",
)
GRAPH = Topic("graph", None, False, 30 * DAY_MS, (e.GraphMeasured,), "the interaction graph, measured on a schedule")
SIGNALS = Topic(
    "signals",
    "prompt",
    True,
    30 * DAY_MS,
    (
        e.PromptNoted,
        e.SubjectNoted,
        e.EngagementNoted,
        e.NetworkNoted,
        e.FeedbackNoted,
        e.FeedbackWithdrawn,
        e.SubjectWithdrawn,
        e.Ticked,
    ),
    "all that a reward is made of, joined by being in one topic",
)
REWARDS = Topic(
    "rewards",
    "prompt",
    True,
    30 * DAY_MS,
    (e.RewardClosed, e.RewardWithdrawn),
    "one reward per subject and closing age, as a vector",
)
PREFERENCES = Topic(
    "preferences",
    None,
    False,
    KEEP_FOR_EVER,
    (learned.PairFormed, learned.PairWithdrawn, e.Ticked),
    "pairs as ids and hashes with weight and provenance",
)
BATCHES = Topic(
    "batches", None, False, KEEP_FOR_EVER, (learned.BatchClosed,), "closed micro-batches with their Merkle root"
)
CANDIDATES = Topic(
    "candidates",
    None,
    False,
    KEEP_FOR_EVER,
    (learned.ModelTrained, learned.ReleaseCommanded),
    "trained versions with their evaluation; the operator's commands",
    outside=True,
)
MODELS = Topic(
    "models",
    None,
    False,
    KEEP_FOR_EVER,
    (learned.ModelReleased, learned.ModelRefused, learned.ModelRolledBack, learned.ModelRetracted),
    "the full history of versions; the base is release 0",
)
MODEL_RELEASES = Topic(
    "model-releases",
    "alias",
    False,
    KEEP_FOR_EVER,
    (learned.ReleasePointed,),
    "alias -> the release to run now",
    compacted=True,
)
DEAD_LETTERS = Topic("dead-letters", None, False, KEEP_FOR_EVER, (e.RecordRefused,), "what could not be used, and why")
ALERTS = Topic("alerts", None, False, 30 * DAY_MS, (e.AlertRaised,), "what a person should look at")
ERASURES = Topic(
    "erasures",
    None,
    False,
    KEEP_FOR_EVER,
    (e.AuthorForgotten, e.PostForgotten, e.CopyErased),
    "receipts of what was forgotten",
)

TOPICS = (
    TWEETS,
    FEEDBACK,
    ANSWERS,
    FEATURES,
    REACTIONS,
    INTERACTIONS,
    GRAPH,
    SIGNALS,
    REWARDS,
    PREFERENCES,
    BATCHES,
    CANDIDATES,
    MODELS,
    MODEL_RELEASES,
    DEAD_LETTERS,
    ALERTS,
    ERASURES,
)
BY_NAME = {topic.name: topic for topic in TOPICS}
HOME = {kind: topic for topic in TOPICS for kind in topic.events if kind is not e.Ticked}
"""The one topic that each kind of event goes to; Ticked is written where it is needed."""


def partitions(topic: Topic, width: int) -> int:
    """Count a topic's partitions where wide topics have `width`."""
    return width if topic.wide else 1


KINDS: dict[str, type[Event]] = {kind.__name__: kind for topic in TOPICS for kind in topic.events}
