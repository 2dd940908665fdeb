//! Sessions between relays: who is listed, with which key, and how many.

use super::*;

/// A session with a relay that drains, or whose descriptor is withheld, goes on and gets fresh keys.
#[test]
fn session_with_a_leaving_relay_goes_on_and_no_session_begins() {
    for key_known in [true, false] {
        let mut rig = rig(10);
        let id = rig.insert_hop(98, false);
        let before = rig.shard.config.peers.clone();
        let responder = before.get(&RelayId(98)).unwrap().responder.clone();
        let (key, other) = (responder.key, RelaySecret::generate(&mut rig.random).public());
        let leaving = Peers::default().with_leaving([(RelayId(98), key_known.then_some(responder))]);
        rig.list(leaving.remembering(&before));
        assert!(!rig.shard.config.peers.has(RelayId(98), &key));
        assert!(!rig.shard.config.peers.keeps(RelayId(98), &other));
        assert_eq!(rig.shard.config.peers.responder(&RelayId(98)).map(|known| known.key), Some(key));
        for seconds in [2, 13, 24] {
            rig.shard.handle_timeout(Time::default().after(Duration::from_secs(seconds)), &mut rig.random);
        }
        assert!(rig.shard.table.get(id).is_some(), "the session ended");
        let answer = rig.shard.answer(id, Message::Rekey(vec![1; REKEY_LEN]), Time::default(), &mut rig.random);
        assert!(answer.is_ok() && rig.requests() == 1, "no fresh keys");
    }
}

/// A relay that left the directory, or has another key there, gets no fresh keys, and its session ends after its grace.
#[test]
fn session_with_a_relay_that_left_the_directory_ends_after_its_grace() {
    for initiator in [false, true] {
        let mut rig = rig(10);
        let (gone, stays) = (rig.insert_hop(98, initiator), rig.insert_hop(99, initiator));
        let listed = rig.shard.config.peers.clone();
        let shrunk: Peers = listed
            .values()
            .filter(|peer| peer.responder.relay == RelayId(99))
            .map(|p| (RelayId(99), p.clone()))
            .collect();
        let other_key: Peers = listed
            .values()
            .map(|peer| {
                let mut peer = peer.clone();
                if peer.responder.relay == RelayId(98) {
                    peer.responder.key = RelaySecret::generate(&mut rig.random).public();
                }
                (peer.responder.relay, peer)
            })
            .collect();
        let mut now = Time::default();
        let mut pass = |rig: &mut Rig, seconds| {
            now = now.after(Duration::from_secs(seconds));
            rig.shard.handle_timeout(now, &mut rig.random);
        };
        for directory in [shrunk, other_key] {
            rig.list(directory.clone());
            pass(&mut rig, 2);
            pass(&mut rig, 9);
            assert!(rig.shard.table.get(gone).is_some(), "in its grace");
            rig.list(listed.clone());
            pass(&mut rig, 2);
            assert!(rig.shard.table.get(gone).is_some(), "listed again");
            rig.list(directory);
        }
        for (id, renewed) in [(gone, 0), (stays, 1)] {
            let answer = rig.shard.answer(id, Message::Rekey(vec![1; REKEY_LEN]), Time::default(), &mut rig.random);
            assert_eq!((answer.is_ok(), rig.requests()), (!initiator, if initiator { 0 } else { renewed }));
        }
        pass(&mut rig, 2);
        pass(&mut rig, 11);
        assert!(rig.shard.table.get(gone).is_none());
        assert!(rig.shard.table.get(stays).is_some());
    }
}

/// What a false cookie does to a relay that begins a handshake: one packet, and the next is as before.
#[test]
fn relay_forgets_a_cookie_that_got_no_reply() {
    let mut rig = rig(10);
    rig.insert_hop(2, true);
    rig.handshaker.set_config(rig.shard.config.clone());
    let (key, now) = (rig.shard.config.peers.get(&RelayId(2)).unwrap().responder.key, Time::from_micros(1));
    let sent = |outputs: Outputs| {
        let Some((0, Output::Send { mut packet, .. })) = outputs.into_iter().next() else { panic!("no packet") };
        IndexMask::to_relay(&key).remove(&mut packet);
        packet
    };
    let connect = Request::Connect { shard: 0, egress: RelayId(2) };
    let plain = sent(rig.handshaker.handle(connect, now, 1, &mut rig.random));
    for number in 0..5 {
        let packet = crate::cookie::packet(&plain, &[9; 16], &key, &mut rig.random);
        let route = Route::Udp(([203, 0, 113, 1], 443).into());
        let false_cookie = Request::Arrival { shard: 0, route, packet, proven: false };
        let outputs = rig.handshaker.handle(false_cookie, now, 1, &mut rig.random);
        if number < 4 {
            assert_eq!(sent(outputs).len(), plain.len() + 16, "with a proof, at once");
        } else {
            assert!(outputs.is_empty());
        }
    }
    let again = rig.handshaker.poll_timeout().unwrap();
    assert_eq!(sent(rig.handshaker.handle_timeout(again, 1, &mut rig.random)).len(), plain.len());
}

/// What comes through an ingress belongs to the ingress, however many sessions it opens.
#[test]
fn ingress_has_one_share_however_many_sessions_it_opens() {
    let mut rig = rig(100);
    let (first, second, other) = (rig.insert_hop(2, false), rig.insert_hop(2, false), rig.insert_hop(3, false));
    let owners = [first, second, other].map(|hop| {
        let route = Route::Circuit { hop, tag: 7 };
        rig.shard.of_relay(route, rig.gate.owner(route))
    });
    assert_eq!(owners[0].group, owners[1].group);
    assert_ne!(owners[0].group, owners[2].group);
    assert_ne!(owners[0].member, owners[1].member);
}

/// The relay that began a session with one that drains asks for fresh keys. With one that left the directory it does
/// not.
#[test]
fn initiator_rekeys_with_a_leaving_relay_and_not_with_one_that_left() {
    for leaves in [true, false] {
        let mut rig = rig(10);
        let id = rig.insert_hop(98, true);
        let responder = rig.shard.config.peers.get(&RelayId(98)).unwrap().responder.clone();
        let leaving = leaves.then_some((RelayId(98), Some(responder)));
        rig.list(Peers::default().with_leaving(leaving));
        rig.shard.transmit_frame(id, FrameKind::Padding, &[], Time::default());
        let queued = |rig: &Rig| rig.shard.table.get(id).map_or(0, |entry| entry.link.backlog());
        assert_eq!(queued(&rig), 0);
        rig.shard.handle_timeout(Time::default().after(Duration::from_secs(400)), &mut rig.random);
        assert_eq!(queued(&rig) > REKEY_LEN, leaves);
    }
}

/// A relay that publishes another relay's key, and then a key of its own, ends no session of the other.
#[test]
fn copied_key_ends_no_session_of_its_owner() {
    let mut rig = rig(10);
    let id = rig.insert_hop(98, false);
    let owner = rig.shard.config.peers.get(&RelayId(98)).unwrap().clone();
    if let Some(Entry { kind: Kind::Hop { relay, .. }, .. }) = rig.shard.table.get_mut(id) {
        // As long as both had the key, the session counted as that of the lower identifier.
        *relay = RelayId(97);
    }
    let mut thief = owner.clone();
    thief.responder.key = RelaySecret::generate(&mut rig.random).public();
    rig.list(Peers::from([(RelayId(97), thief), (RelayId(98), owner)]));
    for seconds in [2, 13, 24] {
        rig.shard.handle_timeout(Time::default().after(Duration::from_secs(seconds)), &mut rig.random);
    }
    assert!(rig.shard.table.get(id).is_some(), "the session ended");
}

/// A relay that starts again with another key while it is being reached is reached by that key. A session that cannot
/// be installed leaves nobody waiting.
#[test]
fn egress_that_changes_its_key_is_reached_and_leaves_nobody_waiting() {
    let mut rig = rig(16);
    let hop = rig.insert_hop(2, true);
    rig.shard.hops.clear();
    rig.handshaker.set_config(rig.shard.config.clone());
    let now = Time::from_micros(1);
    rig.handshaker.handle(Request::Connect { shard: 0, egress: RelayId(2) }, now, 1, &mut rig.random);
    let old = rig.shard.config.peers.get(&RelayId(2)).unwrap().clone();
    let mut new = old.clone();
    new.responder.key = RelaySecret::generate(&mut rig.random).public();
    new.address = ([203, 0, 113, 2], 443).into();
    rig.list(Peers::from([(RelayId(2), new.clone())]));
    rig.handshaker.set_config(rig.shard.config.clone());
    let again = rig.handshaker.poll_timeout().unwrap();
    let sent = rig.handshaker.handle_timeout(again, 1, &mut rig.random);
    let Some((0, Output::Send { route, .. })) = sent.into_iter().next() else { panic!("no packet") };
    assert_eq!(route, Route::Udp(new.address));

    let waiting = rig.insert_confirmed(client(at(7)), false);
    rig.shard.open_circuit(waiting, 1, RelayId(2), &mut rig.random).unwrap();
    assert_eq!(rig.shard.waiting.len(), 1);
    let place = rig.slots.lock().unwrap().take().unwrap();
    let relay = Some((RelayId(2), old.responder.key));
    let install = Install { place, established: established(true), route: Route::Udp(old.address), relay };
    rig.shard.apply(Output::Install(Box::new(install)), now, &mut rig.random);
    assert!(rig.shard.waiting.is_empty());
    assert!(rig.shard.table.get(hop).is_some());
}

/// A relay that opens sessions without end replaces its own, and takes none of other relays.
#[test]
fn relay_that_opens_sessions_without_end_replaces_its_own() {
    let mut rig = rig(16);
    let (greedy, other) = (rig.insert_hop(2, false), rig.insert_hop(3, false));
    let key = |rig: &Rig, id| match &rig.shard.table.get(id).unwrap().kind {
        Kind::Hop { key, .. } => *key,
        Kind::Client { .. } | Kind::Inner { .. } => panic!("not a relay"),
    };
    let greedy_key = key(&rig, greedy);
    let route = Route::Udp(([203, 0, 113, 1], 443).into());
    for _ in 0..100 {
        let place = rig.slots.lock().unwrap().take().unwrap();
        let relay = Some((RelayId(2), greedy_key));
        let install = Install { place, established: established(false), route, relay };
        rig.shard.apply(Output::Install(Box::new(install)), Time::default(), &mut rig.random);
    }
    assert!(rig.shard.table.get(other).is_some() && rig.shard.table.get(greedy).is_none());
    assert!(rig.shard.held().0 <= 4 + 1, "half of eight for relays");
    assert_eq!(rig.slots.lock().unwrap().used() as usize, rig.shard.held().0);
}
