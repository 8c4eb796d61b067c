//! The API against the fake of `fake`: by plain requests, and by the stock `docker` client.

mod cluster;
mod convert;
mod docker_client;
mod http;
