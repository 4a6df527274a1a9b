//! The pods that are to be placed, by number.

use k8s_openapi::api::core::v1::Pod;

use super::dump::Waiting;
use super::generate::Generator;

/// Pods from files, then generated ones.
#[derive(Debug)]
pub(super) struct Workload {
    listed: Vec<Waiting>,
    generator: Generator,
    generated: u32,
    classes: u32,
    interleave: bool,
}

impl Workload {
    pub(super) fn new(
        listed: Vec<Waiting>,
        generator: Generator,
        generated: u32,
        classes: u32,
        interleave: bool,
    ) -> Self {
        Self { listed, generator, generated, classes: classes.max(1), interleave }
    }

    pub(super) fn len(&self) -> usize {
        self.listed.len() + self.generated as usize
    }

    pub(super) fn pod(&self, number: usize) -> Pod {
        if let Some(waiting) = self.listed.get(number) {
            return waiting.pod.clone();
        }
        let (class, number) = self.class(number);
        self.generator.pod(class, number)
    }

    /// What a pod is shown under.
    pub(super) fn account(&self, number: usize) -> String {
        match self.listed.get(number) {
            Some(waiting) => waiting.account.clone(),
            None => format!("class-{}", self.class(number).0),
        }
    }

    /// A generated pod's class and its number within it.
    fn class(&self, number: usize) -> (u32, u32) {
        let number = u32::try_from(number - self.listed.len()).unwrap_or(u32::MAX);
        if self.interleave {
            return (number % self.classes, number / self.classes);
        }
        let each = self.generated.div_ceil(self.classes).max(1);
        (number / each, number % each)
    }
}
