//! What goes wrong in a run.

use super::world::{Event, MS, SECOND, World};

/// Plans the faults of a run by its seed, and says when the last of them is over.
pub(crate) fn plan(world: &mut World) -> u64 {
    let processes = world.count();
    let mut at = 0;
    let faults = 2 + world.below(8);
    let mut end = 5 * SECOND;
    for _ in 0..faults {
        at += world.below(4 * SECOND);
        let process = usize::try_from(world.below(processes as u64)).unwrap();
        let pick = world.random();
        let long = if world.below(2) == 0 { world.below(SECOND) } else { world.below(9 * SECOND) };
        end = end.max(at + long);
        match world.below(13) {
            0 | 1 => {
                world.at(at, Event::Crash(process));
                world.at(at + long, Event::Start(process));
            }
            2 => {
                world.at(at, Event::Terminate(process));
                world.at(at + long, Event::Start(process));
            }
            3 | 4 => world.at(at, Event::Pause(process, long)),
            5 => world.at(at, Event::Stall(process, long)),
            6 => world.at(at, Event::Reset(pick)),
            7 => world.outage(at, long),
            8 => world.isolate(process, at + long),
            9 => world.cut(process, (process + 1) % processes, at + long),
            10 => world.at(at, Event::Edit(pick)),
            11 => world.at(at, Event::Delete),
            _ => {
                // All of them, close together.
                for process in 0..processes {
                    let later = world.below(300 * MS);
                    world.at(at + later, Event::Crash(process));
                    world.at(at + later + long, Event::Start(process));
                    end = end.max(at + later + long);
                }
            }
        }
    }
    end
}
