-- version 1

CREATE TABLE IF NOT EXISTS `post_observed`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `owner` String,
    `source` LowCardinality(String),
    `revision` UInt16,
    `named` Nullable(String),
    `claimed_ms` Nullable(UInt64),
    `lang` LowCardinality(Nullable(String)),
    `parent` Nullable(String),
    `quoted` Nullable(String),
    `quoted_author` Nullable(String),
    `reposted` Nullable(String),
    `reposted_author` Nullable(String),
    `conversation` Nullable(String),
    `reply_to` Nullable(String),
    `mentions` Array(String),
    `media` UInt64,
    `media_kinds` Array(LowCardinality(String)),
    `author_created_ms` Nullable(UInt64),
    `author_followers` Nullable(UInt64),
    `author_following` Nullable(UInt64),
    `author_posts` Nullable(UInt64),
    `author_listed` Nullable(UInt64),
    `author_verified` Nullable(Bool),
    `author_bot` Nullable(Bool),
    `author_utc_offset_s` Nullable(Int32),
    `raw_sha256` String,
    `rights_index` Bool,
    `rights_train` Bool,
    `rights_show` Bool,
    `rights_policy` LowCardinality(String),
    `words_text_hash` Nullable(String),
    `words_features_chars` Nullable(UInt64),
    `words_features_words` Nullable(UInt64),
    `words_features_hashtags` Nullable(UInt64),
    `words_features_mentions` Nullable(UInt64),
    `words_features_links` Nullable(UInt64),
    `words_features_media` Nullable(UInt64),
    `words_features_caps_share` Nullable(Float64),
    `words_features_distinct_share` Nullable(Float64),
    `words_features_cashtags` Nullable(UInt64),
    `words_features_emoji` Nullable(UInt64),
    `words_features_sentences` Nullable(UInt64),
    `words_features_long_words` Nullable(UInt64),
    `words_features_lang` LowCardinality(Nullable(String)),
    `words_features_hour` Nullable(UInt8),
    `words_features_weekday` Nullable(UInt8),
    `words_features_quality` Nullable(Float64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A post as a source gave it.';

CREATE TABLE IF NOT EXISTS `post_edited`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `owner` String,
    `source` LowCardinality(String),
    `revision` UInt16,
    `named` Nullable(String),
    `claimed_ms` Nullable(UInt64),
    `lang` LowCardinality(Nullable(String)),
    `parent` Nullable(String),
    `quoted` Nullable(String),
    `quoted_author` Nullable(String),
    `reposted` Nullable(String),
    `reposted_author` Nullable(String),
    `conversation` Nullable(String),
    `reply_to` Nullable(String),
    `mentions` Array(String),
    `media` UInt64,
    `media_kinds` Array(LowCardinality(String)),
    `author_created_ms` Nullable(UInt64),
    `author_followers` Nullable(UInt64),
    `author_following` Nullable(UInt64),
    `author_posts` Nullable(UInt64),
    `author_listed` Nullable(UInt64),
    `author_verified` Nullable(Bool),
    `author_bot` Nullable(Bool),
    `author_utc_offset_s` Nullable(Int32),
    `raw_sha256` String,
    `rights_index` Bool,
    `rights_train` Bool,
    `rights_show` Bool,
    `rights_policy` LowCardinality(String),
    `words_text_hash` Nullable(String),
    `words_features_chars` Nullable(UInt64),
    `words_features_words` Nullable(UInt64),
    `words_features_hashtags` Nullable(UInt64),
    `words_features_mentions` Nullable(UInt64),
    `words_features_links` Nullable(UInt64),
    `words_features_media` Nullable(UInt64),
    `words_features_caps_share` Nullable(Float64),
    `words_features_distinct_share` Nullable(Float64),
    `words_features_cashtags` Nullable(UInt64),
    `words_features_emoji` Nullable(UInt64),
    `words_features_sentences` Nullable(UInt64),
    `words_features_long_words` Nullable(UInt64),
    `words_features_lang` LowCardinality(Nullable(String)),
    `words_features_hour` Nullable(UInt8),
    `words_features_weekday` Nullable(UInt8),
    `words_features_quality` Nullable(Float64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A later revision of a post; `post` is the id of the first.';

CREATE TABLE IF NOT EXISTS `post_deleted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `owner` String,
    `source` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The source says that the post is gone.';

CREATE TABLE IF NOT EXISTS `engagement_observed`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `owner` String,
    `source` LowCardinality(String),
    `parent` Nullable(String),
    `claimed_ms` Nullable(UInt64),
    `likes` Nullable(UInt64),
    `replies` Nullable(UInt64),
    `reposts` Nullable(UInt64),
    `quotes` Nullable(UInt64),
    `bookmarks` Nullable(UInt64),
    `views` Nullable(UInt64),
    `rights_index` Bool,
    `rights_train` Bool,
    `rights_show` Bool,
    `rights_policy` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'How often people had reacted to a post when the source was asked.';

CREATE TABLE IF NOT EXISTS `reaction_observed`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `act` String,
    `owner` String,
    `source` LowCardinality(String),
    `kind` LowCardinality(String),
    `target` Nullable(String),
    `post` Nullable(String),
    `claimed_ms` Nullable(UInt64),
    `rights_index` Bool,
    `rights_train` Bool,
    `rights_show` Bool,
    `rights_policy` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'One person\'s act that has no words: a like, a repost, a follow, a block. `act` names it, so it can be undone.';

CREATE TABLE IF NOT EXISTS `reaction_retracted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `act` String,
    `owner` String,
    `source` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The act was undone.';

CREATE TABLE IF NOT EXISTS `intent_declared`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `owner` String,
    `source` LowCardinality(String),
    `train` Nullable(Bool),
    `index` Nullable(Bool),
    `claimed_ms` Nullable(UInt64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'An author says what their posts may be used for; None where they say nothing.';

CREATE TABLE IF NOT EXISTS `author_hidden`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `owner` String,
    `source` LowCardinality(String),
    `reason` LowCardinality(String),
    `claimed_ms` Nullable(UInt64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The source hides the account (suspended, deactivated, protected): until shown again, nothing of it is used.';

CREATE TABLE IF NOT EXISTS `author_shown`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `owner` String,
    `source` LowCardinality(String),
    `claimed_ms` Nullable(UInt64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The source shows the account again; what was withdrawn meanwhile stays withdrawn.';

CREATE TABLE IF NOT EXISTS `author_erased`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `owner` String,
    `source` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The source says that the account is gone: its key is destroyed and with it every word of it.';

CREATE TABLE IF NOT EXISTS `feedback_given`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `feedback` String,
    `subject` String,
    `rater` String,
    `kind` LowCardinality(String),
    `value` Int8,
    `other` Nullable(String),
    `simulated` Bool,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'One person\'s judgement of one subject.';

CREATE TABLE IF NOT EXISTS `feedback_retracted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `feedback` String,
    `subject` String,
    `rater` String,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The person takes the judgement back.';

CREATE TABLE IF NOT EXISTS `answer_given`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `owner` String,
    `items` Array(String),
    `release` UInt64,
    `version` String,
    `seed` UInt64,
    `context` Array(String),
    `rights_index` Bool,
    `rights_train` Bool,
    `rights_show` Bool,
    `rights_policy` LowCardinality(String),
    `prompt_hash` String,
    `words_text_hash` Array(String),
    `words_features_chars` Array(UInt64),
    `words_features_words` Array(UInt64),
    `words_features_hashtags` Array(UInt64),
    `words_features_mentions` Array(UInt64),
    `words_features_links` Array(UInt64),
    `words_features_media` Array(UInt64),
    `words_features_caps_share` Array(Float64),
    `words_features_distinct_share` Array(Float64),
    `words_features_cashtags` Array(Nullable(UInt64)),
    `words_features_emoji` Array(Nullable(UInt64)),
    `words_features_sentences` Array(Nullable(UInt64)),
    `words_features_long_words` Array(Nullable(UInt64)),
    `words_features_lang` Array(LowCardinality(Nullable(String))),
    `words_features_hour` Array(Nullable(UInt8)),
    `words_features_weekday` Array(Nullable(UInt8)),
    `words_features_quality` Array(Float64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'What the server said to a prompt: one item a candidate, by exactly one version.';

CREATE TABLE IF NOT EXISTS `post_described`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `owner` String,
    `source` LowCardinality(String),
    `kind` LowCardinality(String),
    `quote` Bool,
    `lang` LowCardinality(Nullable(String)),
    `age_ms` Nullable(UInt64),
    `features_chars` Nullable(UInt64),
    `features_words` Nullable(UInt64),
    `features_hashtags` Nullable(UInt64),
    `features_mentions` Nullable(UInt64),
    `features_links` Nullable(UInt64),
    `features_media` Nullable(UInt64),
    `features_caps_share` Nullable(Float64),
    `features_distinct_share` Nullable(Float64),
    `features_cashtags` Nullable(UInt64),
    `features_emoji` Nullable(UInt64),
    `features_sentences` Nullable(UInt64),
    `features_long_words` Nullable(UInt64),
    `features_lang` LowCardinality(Nullable(String)),
    `features_hour` Nullable(UInt8),
    `features_weekday` Nullable(UInt8),
    `features_quality` Nullable(Float64),
    `media_kinds` Array(LowCardinality(String)),
    `utc_hour_sin` Nullable(Float64),
    `utc_hour_cos` Nullable(Float64),
    `utc_weekday_sin` Nullable(Float64),
    `utc_weekday_cos` Nullable(Float64),
    `utc_season_sin` Nullable(Float64),
    `utc_season_cos` Nullable(Float64),
    `local_hour_sin` Nullable(Float64),
    `local_hour_cos` Nullable(Float64),
    `local_weekday_sin` Nullable(Float64),
    `local_weekday_cos` Nullable(Float64),
    `local_season_sin` Nullable(Float64),
    `local_season_cos` Nullable(Float64),
    `author_age_days` Nullable(Float64),
    `author_followers` Nullable(UInt64),
    `author_followers_ratio` Nullable(Float64),
    `author_posts_a_day` Nullable(Float64),
    `author_listed` Nullable(UInt64),
    `author_verified` Nullable(Bool),
    `author_bot` Nullable(Bool),
    `rights_index` Bool,
    `rights_train` Bool,
    `rights_show` Bool,
    `rights_policy` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'What was extracted from a post, in numbers; no words.';

CREATE TABLE IF NOT EXISTS `engagement_described`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `owner` String,
    `source` LowCardinality(String),
    `age_ms` Nullable(UInt64),
    `likes` Nullable(UInt64),
    `replies` Nullable(UInt64),
    `reposts` Nullable(UInt64),
    `quotes` Nullable(UInt64),
    `bookmarks` Nullable(UInt64),
    `views` Nullable(UInt64),
    `rates_a_view` Nullable(Float64),
    `rates_a_follower` Nullable(Float64),
    `rates_an_hour` Nullable(Float64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'Reactions to a post as counted at an age, and in proportion.';

CREATE TABLE IF NOT EXISTS `post_placed`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `prompt` String,
    `source` LowCardinality(String),
    `claimed_ms` Nullable(UInt64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'This post stands under this prompt; its source gives no counts, so the reactions to it are counted.';

CREATE TABLE IF NOT EXISTS `reaction_noted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `act` String,
    `actor` String,
    `kind` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'One reaction to a post, by its name, so that it counts once and can be undone.';

CREATE TABLE IF NOT EXISTS `reaction_withdrawn`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `act` String,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The reaction no longer counts.';

CREATE TABLE IF NOT EXISTS `interaction_observed`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `kind` LowCardinality(String),
    `source` LowCardinality(String),
    `actor` String,
    `target` Nullable(String),
    `post` String,
    `at_ms` Nullable(UInt64),
    `target_post` Nullable(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'One author acted towards another; `post` names the act: a post, or a like by its own name.';

CREATE TABLE IF NOT EXISTS `interaction_withdrawn`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `actor` String,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The act no longer counts: its post was deleted, or it was undone.';

CREATE TABLE IF NOT EXISTS `post_noted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `post` String,
    `prompt` String,
    `owner` String,
    `source` LowCardinality(String),
    `at_ms` Nullable(UInt64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'An author posted: a node of the graph, and where the signals about this post belong.';

CREATE TABLE IF NOT EXISTS `author_withdrawn`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `owner` String,
    `reason` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'An author is to be forgotten: every edge from them and to them goes.';

CREATE TABLE IF NOT EXISTS `ticked`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `at_ms` UInt64,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'Log time reached this moment; written into every topic whose agent waits for an age.';

CREATE TABLE IF NOT EXISTS `graph_measured`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `at_ms` UInt64,
    `authors` UInt64,
    `edges` UInt64,
    `communities` UInt64,
    `modularity` Float64,
    `top_author` Array(String),
    `top_influence` Array(Float64),
    `top_percentile` Array(Float64),
    `top_community` Array(UInt64),
    `top_acted_on_by` Array(UInt64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The interaction graph as it was at a moment of log time, and who stood out.';

CREATE TABLE IF NOT EXISTS `prompt_noted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `text_hash` String,
    `where_topic` LowCardinality(String),
    `where_partition` UInt32,
    `where_offset` UInt64,
    `rights_index` Bool,
    `rights_train` Bool,
    `rights_show` Bool,
    `rights_policy` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The words that a subject answers are in the log, here.';

CREATE TABLE IF NOT EXISTS `subject_noted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `subject` String,
    `kind` LowCardinality(String),
    `owner` String,
    `source` LowCardinality(String),
    `version` Nullable(String),
    `text_hash` String,
    `where_topic` LowCardinality(String),
    `where_partition` UInt32,
    `where_offset` UInt64,
    `rights_index` Bool,
    `rights_train` Bool,
    `rights_show` Bool,
    `rights_policy` LowCardinality(String),
    `features_chars` UInt64,
    `features_words` UInt64,
    `features_hashtags` UInt64,
    `features_mentions` UInt64,
    `features_links` UInt64,
    `features_media` UInt64,
    `features_caps_share` Float64,
    `features_distinct_share` Float64,
    `features_cashtags` Nullable(UInt64),
    `features_emoji` Nullable(UInt64),
    `features_sentences` Nullable(UInt64),
    `features_long_words` Nullable(UInt64),
    `features_lang` LowCardinality(Nullable(String)),
    `features_hour` Nullable(UInt8),
    `features_weekday` Nullable(UInt8),
    `features_quality` Float64,
    `temporal` Nullable(Float64),
    `review` Nullable(Float64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'There is something to judge, its words are in the log, here.';

CREATE TABLE IF NOT EXISTS `engagement_noted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `subject` String,
    `likes` UInt64,
    `replies` UInt64,
    `reposts` UInt64,
    `quotes` UInt64,
    `bookmarks` UInt64,
    `views` Nullable(UInt64),
    `age_ms` Nullable(UInt64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'Reactions to a subject, as counted last.';

CREATE TABLE IF NOT EXISTS `network_noted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `subject` String,
    `score` Float64,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'How the author of a subject stands in the graph: -1 the least, 1 the most influential.';

CREATE TABLE IF NOT EXISTS `feedback_noted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `subject` String,
    `feedback` String,
    `rater` String,
    `kind` LowCardinality(String),
    `value` Int8,
    `other` Nullable(String),
    `simulated` Bool,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A judgement that is well-formed and new.';

CREATE TABLE IF NOT EXISTS `feedback_withdrawn`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `subject` String,
    `feedback` String,
    `rater` String,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A judgement no longer counts.';

CREATE TABLE IF NOT EXISTS `subject_withdrawn`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `subject` String,
    `reason` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'The words of a subject may no longer be used.';

CREATE TABLE IF NOT EXISTS `reward_closed`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `subject` String,
    `kind` LowCardinality(String),
    `age_ms` UInt64,
    `final` Bool,
    `components_human` Nullable(Float64),
    `components_review` Nullable(Float64),
    `components_engagement` Nullable(Float64),
    `components_network` Nullable(Float64),
    `components_temporal` Nullable(Float64),
    `components_content` Nullable(Float64),
    `missing` Array(LowCardinality(String)),
    `weights` Map(String, Float64),
    `weights_version` LowCardinality(String),
    `penalty` Float64,
    `total` Float64,
    `judgements` UInt64,
    `simulated` UInt64,
    `engagement_age_ms` Nullable(UInt64),
    `version` Nullable(String),
    `text_hash` String,
    `where_topic` LowCardinality(String),
    `where_partition` UInt32,
    `where_offset` UInt64,
    `chars` UInt64,
    `prompt_hash` Nullable(String),
    `prompt_where_topic` LowCardinality(Nullable(String)),
    `prompt_where_partition` Nullable(UInt32),
    `prompt_where_offset` Nullable(UInt64),
    `trainable` Bool,
    `policy` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'What a subject was worth when it reached an age.';

CREATE TABLE IF NOT EXISTS `reward_withdrawn`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `prompt` String,
    `subject` String,
    `reason` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A subject\'s reward may no longer be used.';

CREATE TABLE IF NOT EXISTS `pair_formed`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `pair` String,
    `prompt` String,
    `prompt_hash` String,
    `prompt_where_topic` LowCardinality(String),
    `prompt_where_partition` UInt32,
    `prompt_where_offset` UInt64,
    `chosen_subject` String,
    `chosen_text_hash` String,
    `chosen_where_topic` LowCardinality(String),
    `chosen_where_partition` UInt32,
    `chosen_where_offset` UInt64,
    `chosen_reward` Float64,
    `chosen_chars` UInt64,
    `rejected_subject` String,
    `rejected_text_hash` String,
    `rejected_where_topic` LowCardinality(String),
    `rejected_where_partition` UInt32,
    `rejected_where_offset` UInt64,
    `rejected_reward` Float64,
    `rejected_chars` UInt64,
    `margin` Float64,
    `weight` Float64,
    `origin` LowCardinality(String),
    `simulated` Bool,
    `policy` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'Under one prompt, one text was worth more than another.';

CREATE TABLE IF NOT EXISTS `pair_withdrawn`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `pair` String,
    `reason` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A pair may no longer be used.';

CREATE TABLE IF NOT EXISTS `batch_closed`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `batch` String,
    `sequence` UInt64,
    `pairs_pair` Array(String),
    `pairs_leaf` Array(String),
    `pairs_offset` Array(UInt64),
    `first_offset` UInt64,
    `last_offset` UInt64,
    `root` String,
    `closed_by` LowCardinality(String),
    `opened_ms` UInt64,
    `closed_ms` UInt64,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A micro-batch: what the next version learns from.';

CREATE TABLE IF NOT EXISTS `model_trained`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `version` String,
    `base` String,
    `base_name` LowCardinality(String),
    `adapter` Nullable(String),
    `batches` Array(String),
    `root` Nullable(String),
    `dataset_sha256` Nullable(String),
    `first_offset` Nullable(UInt64),
    `last_offset` Nullable(UInt64),
    `cut` Map(String, String),
    `trained` UInt64,
    `held_back` UInt64,
    `withheld` UInt64,
    `settings` Map(String, String),
    `seed` UInt64,
    `code` LowCardinality(String),
    `losses` Array(Float64),
    `measured_pairs` Nullable(UInt64),
    `measured_accuracy` Nullable(Float64),
    `measured_margin` Nullable(Float64),
    `measured_safety_margin` Nullable(Float64),
    `measured_safety_preferred` Nullable(Float64),
    `measured_neutral_nats` Nullable(Float64),
    `measured_empty_rate` Nullable(Float64),
    `measured_repetition_rate` Nullable(Float64),
    `measured_mean_tokens` Nullable(Float64),
    `baseline_pairs` Nullable(UInt64),
    `baseline_accuracy` Nullable(Float64),
    `baseline_margin` Nullable(Float64),
    `baseline_safety_margin` Nullable(Float64),
    `baseline_safety_preferred` Nullable(Float64),
    `baseline_neutral_nats` Nullable(Float64),
    `baseline_empty_rate` Nullable(Float64),
    `baseline_repetition_rate` Nullable(Float64),
    `baseline_mean_tokens` Nullable(Float64),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A version exists, its files are in place and hashed, and this is what it was made of.';

CREATE TABLE IF NOT EXISTS `release_commanded`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `command` LowCardinality(String),
    `version` String,
    `by` LowCardinality(String),
    `reason` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'An operator asks for a release, a roll-back or a retraction.';

CREATE TABLE IF NOT EXISTS `model_released`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `release` UInt64,
    `version` String,
    `base` String,
    `base_name` LowCardinality(String),
    `adapter` Nullable(String),
    `root` Nullable(String),
    `notes` Array(LowCardinality(String)),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A version may answer people from now on.';

CREATE TABLE IF NOT EXISTS `model_refused`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `version` String,
    `reasons` Array(LowCardinality(String)),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A version was kept back, and why.';

CREATE TABLE IF NOT EXISTS `model_rolled_back`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `release` UInt64,
    `version` String,
    `reason` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'An earlier release answers again.';

CREATE TABLE IF NOT EXISTS `model_retracted`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `version` String,
    `reason` LowCardinality(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A version must not be used any more by anyone.';

CREATE TABLE IF NOT EXISTS `release_pointed`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `alias` String,
    `release` UInt64,
    `version` String,
    `base` String,
    `base_name` LowCardinality(String),
    `adapter` Nullable(String),
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'Under this alias, run this release now. Compacted: the last one of an alias is the truth.';

CREATE TABLE IF NOT EXISTS `record_refused`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `owner` String,
    `reason` String,
    `detail` String,
    `stage` LowCardinality(String),
    `place` String,
    `size` UInt64,
    `sha256` String,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'Something could not be used: why, where it stood, its first bytes (sealed: they may hold words).';

CREATE TABLE IF NOT EXISTS `alert_raised`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `kind` String,
    `stage` LowCardinality(String),
    `detail` String,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'A person should look.';

CREATE TABLE IF NOT EXISTS `author_forgotten`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `owner` String,
    `requested_topic` LowCardinality(String),
    `requested_partition` UInt32,
    `requested_offset` UInt64,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'Receipt: the author\'s key was destroyed before this was written.';

CREATE TABLE IF NOT EXISTS `post_forgotten`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `owner` String,
    `post` String,
    `requested_topic` LowCardinality(String),
    `requested_partition` UInt32,
    `requested_offset` UInt64,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'Receipt: the post\'s key was destroyed before this was written.';

CREATE TABLE IF NOT EXISTS `copy_erased`
(
    `id` String,
    `topic` LowCardinality(String),
    `partition` UInt32,
    `offset` UInt64,
    `time_ms` UInt64,
    `writer` LowCardinality(String),
    `bytes` UInt32,
    `store` String,
    `owner` String,
    `post` Nullable(String),
    `requested_topic` LowCardinality(String),
    `requested_partition` UInt32,
    `requested_offset` UInt64,
    `rows` UInt64,
    `time` DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(toInt64(least(time_ms, 10413791999999))),
    `earliest` UInt64 MATERIALIZED bitNot(offset)
)
ENGINE = ReplacingMergeTree(earliest) ORDER BY (id, partition) SETTINGS old_parts_lifetime = 1, finished_mutations_to_keep = 0
COMMENT 'Receipt: a store beside the log no longer holds anything of a post, or of an author.';
