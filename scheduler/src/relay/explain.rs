//! Why is this pod Pending? The pod is evaluated once more, on demand and beside all else, and each
//! shard is asked by itself: so the answer says which plugin rejected how many nodes on which shard.
//! It reads alone; nothing is reserved and no decision hangs on it.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::fanout::Fanout;
use crate::core::evaluate::Evaluation;
use crate::core::nominate::Nominee;
use crate::core::pod::PodRequest;
use crate::core::survey::Survey;
use crate::protocol::transport::Serve;
use crate::protocol::{Answer, Operation, Request};

/// Questions that wait for the leader's turn; more are refused.
const QUESTIONS: usize = 4;
/// How long a question may wait for it.
const TURN: Duration = Duration::from_secs(10);
/// What paths of the admin port begin with.
pub const PREFIX: &str = "/debug/pods/";

/// A question about a pod.
#[derive(Debug)]
pub struct Question {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Where the answer goes; `None`: no such pod waits here.
    pub answer: oneshot::Sender<Option<Dossier>>,
}

/// Answers `/debug/pods/NAMESPACE/NAME` of the admin port.
#[derive(Clone, Debug)]
pub struct Explainer {
    questions: mpsc::Sender<Question>,
    fanout: Arc<OnceLock<Arc<Fanout>>>,
    /// One at a time: an explanation costs every shard an evaluation or two.
    turn: Arc<Semaphore>,
}

impl Explainer {
    /// With the other end of the questions, for the leader.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let turn = Arc::new(Semaphore::new(1));
        (Self { questions, fanout: Arc::default(), turn }, asked)
    }

    /// From now on shards are asked this way.
    pub fn asks(&self, fanout: &Arc<Fanout>) {
        // Only ever set once, by the process's own start.
        drop(self.fanout.set(fanout.clone()));
    }

    /// The page of a path, if it is one of these.
    #[must_use]
    pub fn page(&self, path: &str) -> Option<impl Future<Output = (StatusCode, String)> + use<>> {
        let (namespace, name) = path.strip_prefix(PREFIX)?.split_once('/')?;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let this = self.clone();
        Some(async move { this.answer(namespace, name).await })
    }

    async fn answer(self, namespace: String, name: String) -> (StatusCode, String) {
        let Some(fanout) = self.fanout.get().cloned() else {
            return (StatusCode::NOT_FOUND, "not a relay\n".to_owned());
        };
        let Ok(_turn) = self.turn.try_acquire() else {
            return (StatusCode::TOO_MANY_REQUESTS, "another pod is being explained\n".to_owned());
        };
        let (answer, answered) = oneshot::channel();
        let question = Question { namespace, name, answer };
        if self.questions.try_send(question).is_err() {
            return (StatusCode::TOO_MANY_REQUESTS, "too many questions\n".to_owned());
        }
        match timeout(TURN, answered).await {
            Ok(Ok(Some(dossier))) => {
                let explanation = explain(&fanout, dossier).await;
                match serde_json::to_string_pretty(&explanation) {
                    Ok(json) => (StatusCode::OK, json + "\n"),
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
                }
            }
            Ok(Ok(None)) => (StatusCode::NOT_FOUND, "no such pod waits here\n".to_owned()),
            Ok(Err(_)) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "no answer\n".to_owned()),
        }
    }
}

/// What the relay knows of a waiting pod, and how to ask the shards about it.
#[derive(Clone, Debug)]
pub struct Dossier {
    /// What is told at once.
    pub known: Explanation,
    /// The pod with all that hangs on other objects.
    pub class: Arc<PodRequest>,
    /// The pods that it has to yield to.
    pub nominees: Arc<[Nominee]>,
    /// To all shards that answer, without operations; `None` where this relay doesn't lead.
    pub request: Option<Request>,
}

/// Why a pod waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `NAMESPACE/NAME`
    pub pod: String,
    /// `metadata.uid`
    pub uid: String,
    /// Where in the queue it is: `active`, `backoff`, `unschedulable`, `gated`, or `in-flight` while
    /// it is decided or bound.
    pub queue: String,
    /// How often it was tried.
    pub attempts: u32,
    /// The node that it is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nominated_node: Option<String>,
    /// What was said last of why it fits nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Shards that aren't asked, because they did not answer before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// What each of the others says now.
    #[serde(default)]
    pub shards: Vec<ShardSays>,
    /// Why the shards could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// One shard's word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardSays {
    /// The shard.
    pub shard: String,
    /// Nodes that it owns.
    pub nodes: u64,
    /// Nodes that take the pod.
    pub feasible: u64,
    /// Nodes that don't, by plugin and reason. One short of two resources is in two.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
    /// Why it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Nodes that a plugin rejects for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its name.
    pub plugin: String,
    /// In kube-scheduler's words.
    pub reason: String,
    /// How many.
    pub nodes: u64,
}

/// Asks the shards about the pod, one by one.
pub async fn explain(fanout: &Fanout, dossier: Dossier) -> Explanation {
    let Dossier { mut known, class, nominees, request } = dossier;
    let Some(request) = request else {
        known.trouble = Some("this relay doesn't lead: ask the leader".to_owned());
        return known;
    };
    if !class.unsupported.is_empty() {
        let wants: Vec<String> = class.unsupported.iter().map(ToString::to_string).collect();
        known.trouble =
            Some(format!("the pod asks for what isn't supported: {}", wants.join(", ")));
        return known;
    }
    let survey = match survey(fanout, &request, &class, !nominees.is_empty()).await {
        Ok(survey) => Arc::new(survey),
        Err(trouble) => {
            known.trouble = Some(trouble);
            return known;
        }
    };
    for target in &request.targets {
        let operation = Operation::Evaluate {
            class: class.clone(),
            seed: 0,
            count: 1,
            survey: Some(survey.clone()),
            nominees: nominees.clone(),
        };
        let part = Request {
            targets: vec![target.clone()],
            relays: Vec::new(),
            operations: vec![operation],
            ..request.clone()
        };
        let response = fanout.exchange(part).await;
        let refusal = response.shards.into_iter().find_map(|report| report.refusal);
        let answer = response.answers.into_iter().next();
        let says = match (refusal, answer) {
            (None, Some(Answer::Evaluations(evaluations))) => evaluations.into_iter().next(),
            (Some(refusal), _) => {
                known.shards.push(silent(&target.shard, refusal.to_string()));
                continue;
            }
            _ => None,
        };
        known.shards.push(match says {
            Some(evaluation) => spoken(&target.shard, &evaluation),
            None => silent(&target.shard, "no answer".to_owned()),
        });
    }
    known
}

async fn survey(
    fanout: &Fanout,
    request: &Request,
    class: &Arc<PodRequest>,
    nominees: bool,
) -> Result<Survey, String> {
    let mut full = nominees;
    // Once more in full where some node's hostname is not its name.
    for _ in 0..2 {
        let operation = Operation::Survey { class: class.clone(), full };
        let asked = Request { operations: vec![operation], ..request.clone() };
        let response = fanout.exchange(asked).await;
        match response.answers.into_iter().next() {
            Some(Answer::Survey(survey)) if survey.full || !survey.odd_hostnames => {
                return Ok(*survey);
            }
            Some(Answer::Survey(_)) => full = true,
            _ => break,
        }
    }
    Err("the shards did not answer".to_owned())
}

fn silent(shard: &str, trouble: String) -> ShardSays {
    ShardSays { shard: shard.to_owned(), trouble: Some(trouble), ..ShardSays::default() }
}

fn spoken(shard: &str, evaluation: &Evaluation) -> ShardSays {
    let rejected = evaluation.rejections.iter().map(|(reason, nodes)| Rejected {
        plugin: reason.plugin().name().to_owned(),
        reason: reason.to_string(),
        nodes: *nodes,
    });
    ShardSays {
        shard: shard.to_owned(),
        nodes: evaluation.nodes,
        feasible: evaluation.feasible,
        rejected: rejected.collect(),
        trouble: None,
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} after {} attempts", self.pod, self.queue, self.attempts)?;
        if let Some(node) = &self.nominated_node {
            writeln!(f, "  promised node {node}")?;
        }
        if let Some(message) = &self.message {
            writeln!(f, "  {message}")?;
        }
        for shard in &self.left_out {
            writeln!(f, "  {shard}: left out, it does not answer")?;
        }
        for says in &self.shards {
            match &says.trouble {
                Some(trouble) => writeln!(f, "  {}: {trouble}", says.shard)?,
                None => writeln!(
                    f,
                    "  {}: {} of {} nodes take the pod",
                    says.shard, says.feasible, says.nodes
                )?,
            }
            for Rejected { plugin, reason, nodes } in &says.rejected {
                writeln!(f, "  {nodes:>9} {plugin}: {reason}")?;
            }
        }
        match &self.trouble {
            Some(trouble) => writeln!(f, "  {trouble}"),
            None => Ok(()),
        }
    }
}
