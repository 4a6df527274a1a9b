//! A shard: some of the nodes, what is taken on them, and answers about them.

pub mod local;
pub mod machine;
pub mod watch;
