//! A port before replicas that are there already: `balance LISTEN PORT…`, such as `balance 127.0.0.1:8080 9001 9002`.
//! What the benchmark measures, and a way to try the balancer by hand. Ends with its standard input.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]

use std::process::ExitCode;
use std::time::Duration;

use plimsoll_gateway::{Backend, Gateway, Limits, State};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let listen = words.next().and_then(|word| word.parse().ok());
    let ports: Option<Vec<u16>> = words.map(|word| word.parse().ok()).collect();
    let (Some(listen), Some(ports)) = (listen, ports) else {
        eprintln!("usage: balance ADDRESS:PORT REPLICA_PORT…");
        return ExitCode::from(2);
    };
    let backends =
        ports.iter().zip(1..).map(|(&port, instance)| Backend { instance, port, state: State::Up }).collect();
    let opened = Gateway::start(|_| {}, |_| true, || {}).and_then(|mut gateway| {
        let address = gateway.open("service", listen, Limits::default())?;
        gateway.route("service", backends);
        Ok((gateway, address))
    });
    match opened {
        Ok((gateway, address)) => {
            println!("listening on {address}");
            while std::io::stdin().read_line(&mut String::new()).is_ok_and(|read| read > 0) {}
            if let Some((_, counters)) = gateway.port("service") {
                println!("{:?}", counters.tally());
            }
            gateway.stop(Duration::from_secs(1));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("balance: {error}");
            ExitCode::FAILURE
        }
    }
}
