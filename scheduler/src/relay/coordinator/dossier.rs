//! What the leader knows of one waiting pod, for whoever asks why it waits.

use std::sync::Arc;

use super::Coordinator;
use crate::relay::explain::{Dossier, Explanation};

impl Coordinator {
    /// All that is known of a waiting pod; `None` where none of that name waits. Looks through all
    /// of them: for people, not for programs.
    pub fn dossier(&mut self, namespace: &str, name: &str) -> Option<Dossier> {
        let (uid, message) = self.pods.by_name(namespace, name)?;
        let id = self.pods.id(uid)?;
        let (queue, attempts, request) = self.queue.whereabouts(uid)?;
        let class = self.resolve(&request);
        let request = self.term.map(|term| {
            let targets = self.shards.up_targets();
            self.request(term, targets, Vec::new())
        });
        let asked = request.iter().flat_map(|request| &request.targets);
        let asked: Vec<Arc<str>> = asked.map(|target| target.shard.clone()).collect();
        let names = self.config.membership.names();
        let left_out = names.filter(|name| request.is_some() && !asked.contains(name));
        Some(Dossier {
            known: Explanation {
                pod: id.to_string(),
                uid: id.uid.to_string(),
                queue: queue.to_owned(),
                attempts,
                nominated_node: self.nominations.node(uid).map(ToString::to_string),
                message,
                left_out: left_out.map(ToString::to_string).collect(),
                ..Explanation::default()
            },
            nominees: self.nominees(&class, uid, &[]),
            class,
            request,
        })
    }
}
