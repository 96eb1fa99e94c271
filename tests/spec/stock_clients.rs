//! What stock clients were built and tested against, case by case: the recorder's sentence for each, and how it is held to it.
//!
//! The ids are those of the Go tests that the clients come with (C) and of experiments with stock clients (X). A sentence about what is served or refused is
//! executed here; what the recorder never does is asserted by the `witness` on every connection of every test; what only a client can show is shown with
//! stock clients in `tests/interop`.

mod refusals;
mod served;

use tokio::runtime::{Builder, Runtime};

/// How a sentence is held.
enum Proof {
    /// It does as it says: executed here.
    Served(fn()),
    /// It refuses, or gives up, in just this way: executed here.
    Refusal(fn()),
    /// It never does that to a client: asserted on the wire of every test that uploads.
    Never,
    /// The client's own conduct: executed with stock clients in tests/interop.
    ClientOnly,
}

struct Case {
    id: &'static str,
    sentence: &'static str,
    proof: Proof,
}

const fn case(id: &'static str, proof: Proof, sentence: &'static str) -> Case {
    Case {
        id,
        sentence,
        proof,
    }
}

use Proof::{ClientOnly, Never, Refusal, Served};

const CASES: &[Case] = &[
    case(
        "C01",
        Served(served::c01),
        "I take 1 MiB of noise through /record, whole, and say 200 when it is sealed.",
    ),
    case(
        "C02",
        Served(served::c02),
        "I take the same through /v2/record, ack it as it becomes durable, and end cleanly.",
    ),
    case(
        "C03",
        ClientOnly,
        "I am never without acks; what a client does then is its own.",
    ),
    case(
        "C04",
        Served(served::c04),
        "I take events on the connection of the probe and keep the body byte for byte.",
    ),
    case(
        "C05",
        Refusal(refusals::c05),
        "Without events I answer the probe 404, which means: not supported.",
    ),
    case(
        "C06",
        Refusal(refusals::c06),
        "With a dead store I answer 503 to everything, at once, events included.",
    ),
    case(
        "C07",
        Refusal(refusals::c07),
        "Who may not upload gets 403 and no body, over every endpoint.",
    ),
    case(
        "C08",
        Refusal(refusals::c08),
        "An upload that fails after its start gets one error frame; what came after is not kept.",
    ),
    case("C09", ClientOnly, "I may be the third of three recorders."),
    case(
        "C10",
        Served(served::c10),
        "I read who, as whom and which command from a header as it comes.",
    ),
    case(
        "C11",
        ClientOnly,
        "Whether a Kubernetes session goes on without me is its proxy's decision.",
    ),
    case(
        "C12",
        Served(served::c12),
        "I take casts of Kubernetes: late headers, null environments, sizes of 0, resizes.",
    ),
    case(
        "C13",
        ClientOnly,
        "The proxy reads who I am from the tailnet's rules.",
    ),
    case("C14", ClientOnly, "The proxy fills in what an event says."),
    case(
        "C15",
        ClientOnly,
        "The operator makes my pod of its resource.",
    ),
    case(
        "X01",
        Served(served::x01),
        "My frames are JSON values, whatever white space stands between them.",
    ),
    case(
        "X02",
        Refusal(refusals::x02),
        "A failure in the middle is an error frame with its text, and the end.",
    ),
    case(
        "X03",
        Never,
        "I never end a response before the session, but after an error frame.",
    ),
    case(
        "X04",
        Never,
        "I never reset a stream, cut a frame or send one of wrong types.",
    ),
    case(
        "X05",
        Never,
        "I never report an error behind a complete body while the store is well.",
    ),
    case(
        "X06",
        Served(served::x06),
        "While I seal I go on acking, however long it takes.",
    ),
    case(
        "X07",
        Refusal(refusals::x07),
        "A refusal has no body, and the client is free for the next recorder at once.",
    ),
    case(
        "X08",
        Never,
        "I never refuse with a body, or leave a refusal's stream open.",
    ),
    case("X09", Never, "My response head never waits for the body."),
    case(
        "X10",
        ClientOnly,
        "I do not compress acks; a client would bear it.",
    ),
    case("X11", Never, "I never say 200 before 100."),
    case("X12", Never, "I never say 200 before the body has ended."),
    case("X13", Never, "I never leave a request without an answer."),
    case(
        "X14",
        ClientOnly,
        "I speak HTTP/2; who does not is left for /record at once.",
    ),
    case(
        "X15",
        ClientOnly,
        "I answer; how long a client waits for the dead is its own.",
    ),
    case(
        "X16",
        Served(served::x16),
        "A session may be idle for 10,000 seconds and more, and I ack all the while.",
    ),
    case(
        "X17",
        Served(served::x17),
        "Of a client that is killed I keep what came, as incomplete.",
    ),
];

#[test]
fn the_recorder_keeps_each_sentence_of_the_table() {
    let (mut executed, mut never, mut interop) = (0, 0, 0);
    for Case {
        id,
        sentence,
        proof,
    } in CASES
    {
        match proof {
            Served(run) | Refusal(run) => {
                // On a line of its own before it runs, so that a failure below has its name.
                println!("{id} {sentence}");
                run();
                executed += 1;
            }
            Never => never += 1,
            ClientOnly => interop += 1,
        }
    }
    println!(
        "stock clients: {executed} of {} cases executed here, {never} asserted on the wire of every test, {interop} in interop",
        CASES.len()
    );
    assert_eq!((executed, never, interop), (15, 8, 9));
}

#[test]
fn every_case_stands_in_the_table_once_and_in_order() {
    let c = (1..=15).map(|number| format!("C{number:02}"));
    let x = (1..=17).map(|number| format!("X{number:02}"));
    let ids: Vec<&str> = CASES.iter().map(|case| case.id).collect();
    assert_eq!(ids, c.chain(x).collect::<Vec<_>>());
}

/// A runtime in real time, for the tunnel.
fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A runtime whose clock jumps to the next deadline when there is nothing else to do.
fn virtual_time() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}
