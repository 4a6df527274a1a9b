//! The oracle as a program that is asked line by line.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::Answer;

/// The program with kube-scheduler's framework, which `ORACLE` names.
pub(crate) struct Oracle {
    process: Child,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Oracle {
    pub(crate) fn start() -> Self {
        let program = std::env::var("ORACLE").expect("ORACLE names the oracle program");
        let mut process =
            Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let questions = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, questions, answers }
    }

    /// The answer about a case, as it is printed and read.
    pub(crate) fn ask(&mut self, case: &Value) -> (String, Answer) {
        writeln!(self.questions, "{case}").unwrap();
        let line = self.answers.next().expect("the oracle ended early").unwrap();
        let answer = serde_json::from_str(&line).unwrap();
        (line, answer)
    }

    pub(crate) fn end(mut self) {
        drop(self.questions);
        assert!(self.process.wait().unwrap().success());
    }
}
