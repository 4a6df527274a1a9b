//! Fewer wakes of a busy thread. What has to do with one pod comes in four pieces: two events of a
//! watch and two answers. A wake for each costs more than much of what is then done. So the thread
//! pauses where it would wait again within [`GAP`] of its last wake: what comes meanwhile waits in
//! the sockets, and is taken in one turn. Where little happens, hardly anything comes so close to
//! something else, and nothing is held up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Builder;

/// From one wake to the next at least.
const GAP: Duration = Duration::from_millis(2);

/// Has the thread of a runtime of one thread pause before it waits.
pub fn gather(runtime: &mut Builder) {
    let woken: Arc<Mutex<Option<Instant>>> = Arc::default();
    let last = woken.clone();
    runtime.on_thread_park(move || {
        let since = last.lock().map(|woken| woken.elapsed());
        if let Some(rest) = since.and_then(|since| GAP.checked_sub(since)) {
            std::thread::sleep(rest);
        }
    });
    runtime.on_thread_unpark(move || *woken.lock() = Some(Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_close_together_is_taken_together() {
        let mut builder = Builder::new_current_thread();
        gather(&mut builder);
        let Ok(runtime) = builder.build() else { return };
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let begun = Instant::now();
        let sends = std::thread::spawn(move || {
            for number in 0..300 {
                std::thread::sleep(Duration::from_micros(50));
                assert!(sender.send(number).is_ok());
            }
        });
        let (turns, taken) = runtime.block_on(async {
            let (mut turns, mut taken) = (0, Vec::new());
            while receiver.recv_many(&mut taken, 1000).await > 0 {
                turns += 1;
            }
            (turns, taken)
        });
        assert!(sends.join().is_ok());
        assert!(taken.into_iter().eq(0..300));
        // One for each wake, and one where something came during it.
        let wakes = begun.elapsed().as_nanos() / GAP.as_nanos() + 1;
        assert!(turns <= 2 * wakes, "{turns} turns in {wakes} times the gap");
    }
}
