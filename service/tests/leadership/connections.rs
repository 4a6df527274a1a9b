//! Connections between the simulated processes: in order, late, cut and reset.

use std::collections::VecDeque;

use megacluster_service::leadership::End;
use megacluster_service::leadership::election::Effect;
use megacluster_service::leadership::wire::{FromLeader, FromStandby};

use super::world::{Event, Input, MS, SECOND, World};

#[derive(Clone, Debug)]
pub(crate) enum Packet {
    Hello(FromStandby),
    Ask(FromLeader),
    Fin,
}

pub(crate) struct Connection {
    pub(crate) standby: (usize, u64),
    pub(crate) session: u64,
    pub(crate) leader: (usize, u64),
    pub(crate) id: u64,
    pub(crate) up: VecDeque<Packet>,
    pub(crate) down: VecDeque<Packet>,
    /// No message overtakes another.
    pub(crate) busy: [u64; 2],
}

fn connection(standby: (usize, u64), session: u64, leader: (usize, u64), id: u64) -> Connection {
    Connection {
        standby,
        session,
        leader,
        id,
        up: VecDeque::new(),
        down: VecDeque::new(),
        busy: [0, 0],
    }
}

impl World {
    pub(crate) fn effects(&mut self, process: usize) {
        let life = self.processes[process].life;
        let Some(election) = self.processes[process].election.as_mut() else { return };
        for effect in election.effects() {
            let of = |connection: &Connection, session| {
                connection.standby == (process, life) && connection.session == session
            };
            match effect {
                Effect::Connect(target) => {
                    let leader = usize::from(target.peer.address.port() - 7000);
                    let key = target.peer.key;
                    let there = (leader, self.processes[leader].life);
                    if !self.is_life(there) || self.is_cut(process, leader) {
                        let delay = if self.is_cut(process, leader) { 2 * SECOND } else { MS };
                        // Told by the reset of a connection that was never there.
                        self.calls += 1;
                        let id = self.calls;
                        self.connections.insert(
                            id,
                            connection((process, life), target.session, (leader, 0), id),
                        );
                        self.at(
                            self.now + delay,
                            Event::Arrive { connection: id, to_leader: false },
                        );
                        continue;
                    }
                    self.calls += 1;
                    let id = self.calls;
                    let new = connection((process, life), target.session, there, id);
                    self.connections.insert(id, new);
                    let identity = format!("c{process}");
                    let session = target.session;
                    self.send(
                        id,
                        true,
                        Packet::Hello(FromStandby::Hello { key, identity, session }),
                    );
                }
                Effect::Answer(session, answer) => {
                    if let Some(id) = self.find(|c| of(c, session)) {
                        self.send(id, true, Packet::Hello(answer));
                    }
                }
                Effect::Leave(session) => {
                    if let Some(id) = self.find(|c| of(c, session)) {
                        self.send(id, true, Packet::Fin);
                        // The standby hears nothing more of it.
                        if let Some(c) = self.connections.get_mut(&id) {
                            c.session = 0;
                        }
                    }
                }
                Effect::Say(id, words) => {
                    if self.connections.get(&id).is_some_and(|c| c.leader == (process, life)) {
                        self.send(id, false, Packet::Ask(words));
                    }
                }
                Effect::Close(id) => {
                    if self.connections.get(&id).is_some_and(|c| c.leader == (process, life)) {
                        self.send(id, false, Packet::Fin);
                    }
                }
            }
        }
    }

    fn find(&self, wanted: impl Fn(&Connection) -> bool) -> Option<u64> {
        self.connections.iter().find(|(_, connection)| wanted(connection)).map(|(id, _)| *id)
    }

    pub(crate) fn send(&mut self, id: u64, to_leader: bool, packet: Packet) {
        // TCP: late where a packet is lost, but in order.
        let delay = self.delay().unwrap_or(SECOND) / 4;
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (lane, busy) = if to_leader {
            (&mut connection.up, &mut connection.busy[0])
        } else {
            (&mut connection.down, &mut connection.busy[1])
        };
        lane.push_back(packet);
        *busy = (now + delay).max(*busy + 1);
        let at = *busy;
        self.at(at, Event::Arrive { connection: id, to_leader });
    }

    pub(crate) fn arrive(&mut self, id: u64, to_leader: bool) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (standby, leader, session) =
            (connection.standby, connection.leader, connection.session);
        if leader.1 == 0 {
            self.connections.remove(&id);
            if self.is_life(standby) {
                self.input(standby.0, Input::Ended(session, End::Broken));
            }
            return;
        }
        if self.is_cut(standby.0, leader.0) {
            self.at(self.now + 20 * MS, Event::Arrive { connection: id, to_leader });
            return;
        }
        let connection = self.connections.get_mut(&id).unwrap();
        let lane = if to_leader { &mut connection.up } else { &mut connection.down };
        let Some(packet) = lane.pop_front() else { return };
        let (to, input) = match packet {
            Packet::Hello(words) => (leader, Input::Told(id, words)),
            Packet::Ask(words) => (standby, Input::Heard(session, words)),
            Packet::Fin if to_leader => (leader, Input::Gone(id)),
            Packet::Fin => {
                self.connections.remove(&id);
                (standby, Input::Ended(session, End::Closed))
            }
        };
        if self.is_life(to) {
            self.input(to.0, input);
        }
    }

    pub(crate) fn reset(&mut self, pick: u64) {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[usize::try_from(pick).unwrap() % ids.len()];
        let Some(connection) = self.connections.remove(&id) else { return };
        if self.is_life(connection.standby) {
            self.input(connection.standby.0, Input::Ended(connection.session, End::Broken));
        }
        if self.is_life(connection.leader) {
            self.input(connection.leader.0, Input::Gone(connection.id));
        }
    }
}
