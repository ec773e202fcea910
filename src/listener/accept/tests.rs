use std::collections::VecDeque;

use tokio::time::Instant;

use super::*;
use crate::config::settings::{SocketAddress, SocketSettings};

/// Answers with these errors, then with connections for ever; once it is left, with what
/// `left` says.
#[derive(Default)]
struct Failing {
    errors: VecDeque<Errno>,
    left: VecDeque<Left>,
    taken: Arc<AtomicU64>,
}

/// Who waits at a socket that was left.
#[derive(Clone, Copy)]
enum Left {
    Somebody,
    Not(Errno),
}

impl Source for Failing {
    async fn accept(&mut self) -> io::Result<UnixStream> {
        match self.errors.pop_front() {
            Some(errno) => Err(errno.into()),
            None => Ok(UnixStream::pair()?.0),
        }
    }

    fn accept_left(&mut self) -> io::Result<Option<UnixStream>> {
        match self.left.pop_front() {
            Some(Left::Not(errno)) => Err(errno.into()),
            Some(Left::Somebody) => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                Ok(Some(UnixStream::pair()?.0))
            }
            None => Ok(None),
        }
    }
}

fn acceptor(errors: &[Errno], allowed: Option<Vec<u32>>, max: usize) -> Acceptor<Failing> {
    let source = Failing { errors: errors.iter().copied().collect(), ..Failing::default() };
    Acceptor::from_source(source, policy(allowed), max, CancellationToken::new())
}

fn policy(allowed_uids: Option<Vec<u32>>) -> PeerPolicy {
    PeerPolicy::new(&SocketSettings {
        address: SocketAddress::Abstract("x".into()),
        mode: 0o600,
        owner: None,
        group: None,
        allowed_uids,
    })
}

/// An acceptor whose socket was moved; in the line of each former one this waits. And how many
/// were taken in from there.
fn moved(lines: &[&[Left]], max: usize) -> (Acceptor<Failing>, Arc<AtomicU64>) {
    let taken = Arc::new(AtomicU64::new(0));
    let mut sources = lines.iter().map(|line| Failing {
        left: line.iter().copied().collect(),
        taken: Arc::clone(&taken),
        ..Failing::default()
    });
    let mut acceptor = acceptor(&[], None, max);
    acceptor.source = sources.next().unwrap();
    for source in sources.chain([Failing::default()]) {
        acceptor.change(Some(source), policy(None));
    }
    (acceptor, taken)
}

#[tokio::test(start_paused = true)]
async fn a_lack_of_descriptors_is_waited_out_a_little_longer_each_time() {
    let mut acceptor = acceptor(&[Errno::MFILE; 10], None, 9);
    let begin = Instant::now();
    assert!(acceptor.accept().await.is_some());
    // 5, 10, 20, 40, 80, 160, 320, 640 ms, then 1 s twice
    assert_eq!(begin.elapsed(), Duration::from_millis(1_275 + 2_000));
    let begin = Instant::now();
    acceptor.source.errors.push_back(Errno::NOMEM);
    assert!(acceptor.accept().await.is_some());
    assert_eq!(begin.elapsed(), SHORTEST_PAUSE);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hung_up_costs_no_time() {
    let begin = Instant::now();
    assert!(acceptor(&[Errno::CONNABORTED; 100], None, 9).accept().await.is_some());
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn no_more_connections_are_open_than_allowed() {
    let mut acceptor = acceptor(&[], None, 2);
    let first = acceptor.accept().await.unwrap();
    let second = acceptor.accept().await.unwrap();
    assert!(second.info().id > first.info().id);
    let wait = Duration::from_secs(60);
    assert!(tokio::time::timeout(wait, acceptor.accept()).await.is_err());
    drop(first);
    assert!(tokio::time::timeout(wait, acceptor.accept()).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn it_stops_in_the_middle_of_a_pause() {
    let mut acceptor = acceptor(&[Errno::NFILE; 1_000], None, 9);
    let stop = acceptor.stop.clone();
    let begin = Instant::now();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(12_345)).await;
        stop.cancel();
    });
    assert!(acceptor.accept().await.is_none());
    assert_eq!(begin.elapsed(), Duration::from_millis(12_345));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_at_the_former_socket_is_taken_in_when_a_lack_of_descriptors_ends() {
    let line = [&[Left::Not(Errno::MFILE); 5][..], &[Left::Somebody; 3]].concat();
    let (mut acceptor, taken) = moved(&[&line], 9);
    let begin = Instant::now();
    for _ in 0..3 {
        acceptor.accept().await.unwrap();
    }
    assert_eq!(taken.load(Ordering::Relaxed), 3, "somebody was turned away");
    assert_eq!(begin.elapsed(), Duration::from_millis(5 + 10 + 20 + 40 + 80));
}

#[tokio::test(start_paused = true)]
async fn a_second_move_turns_nobody_away_who_waits_at_the_first_socket() {
    let (mut acceptor, taken) = moved(&[&[Left::Somebody; 2], &[Left::Somebody; 3]], 9);
    for _ in 0..5 {
        acceptor.accept().await.unwrap();
    }
    assert_eq!(taken.load(Ordering::Relaxed), 5, "somebody was turned away");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_at_a_former_socket_for_ever() {
    // Descriptors are short for too long.
    let (mut acceptor, taken) = moved(&[&[Left::Not(Errno::MFILE); 1_000]], 9);
    let begin = Instant::now();
    acceptor.accept().await.unwrap();
    assert!(begin.elapsed() >= leaving::PATIENCE, "{:?}", begin.elapsed());
    assert!(begin.elapsed() <= leaving::PATIENCE + LONGEST_PAUSE);
    assert_eq!(taken.load(Ordering::Relaxed), 0);

    // All connections that may be open are.
    let (mut acceptor, taken) = moved(&[&[Left::Somebody; 2]], 1);
    let first = acceptor.accept().await.unwrap();
    let full = tokio::time::timeout(2 * leaving::PATIENCE, acceptor.accept()).await;
    assert!(full.is_err());
    drop(first);
    acceptor.accept().await.unwrap();
    assert_eq!(taken.load(Ordering::Relaxed), 1, "the second has given up long ago");
}

#[tokio::test(start_paused = true)]
async fn only_so_many_former_sockets_are_kept() {
    let line: &[Left] = &[Left::Somebody];
    let (mut acceptor, taken) = moved(&[line; leaving::MAX_SOCKETS + 2], 9);
    for _ in 0..leaving::MAX_SOCKETS + 2 {
        acceptor.accept().await.unwrap();
    }
    assert_eq!(taken.load(Ordering::Relaxed), leaving::MAX_SOCKETS as u64);
}
